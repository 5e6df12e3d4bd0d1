//! tmp
#![allow(missing_docs)]
use std::{io, net::SocketAddr, time::Duration};
pub async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<glommio::net::TcpStream> {
    glommio::net::TcpStream::connect_timeout(address, timeout).await.map_err(|e| io::Error::other(e.to_string()))
}
