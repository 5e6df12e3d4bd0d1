//! Where the load goes.

use std::{fmt, net::IpAddr, str::FromStr};

/// A server, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What it speaks.
    pub scheme: Scheme,
    /// Its host: a name or an address, IPv6 without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// All of it, as it was given.
    pub text: String,
}

/// What a target speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// gRPC: a node or a router of ours.
    Http,
    /// RESP2: Redis and what speaks like it.
    Redis,
    /// memcached's text protocol.
    Memcached,
}

/// The schemes with the ports that their servers usually have.
const SCHEMES: [(&str, Scheme, Option<u16>); 3] = [
    ("http", Scheme::Http, None),
    ("redis", Scheme::Redis, Some(6379)),
    ("memcached", Scheme::Memcached, Some(11_211)),
];

/// A target that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetError(String);

impl Target {
    /// Whether it is certain that this is a server on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let error = || TargetError(text.to_owned());
        let text = text.trim_end_matches('/');
        let (scheme, authority) = text.split_once("://").ok_or_else(error)?;
        let (_, scheme, usual_port) = SCHEMES.iter().find(|(name, ..)| *name == scheme).ok_or_else(error)?;
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(error)?),
            None => (authority, usual_port.ok_or_else(error)?),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || host.contains(['/', '@']) {
            return Err(error());
        }
        Ok(Self { scheme: *scheme, host, port, text: text.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(found) = self;
        write!(f, "{found}: http://HOST:PORT of a node or a router, redis://HOST or memcached://HOST is expected")
    }
}

impl std::error::Error for TargetError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_host_and_port() {
        let target: Target = "http://[::1]:50051/".parse().unwrap();
        assert_eq!((&*target.host, target.port, &*target.text), ("::1", 50051, "http://[::1]:50051"));
        let port = |text: &str| text.parse::<Target>().unwrap().port;
        assert_eq!([port("redis://[::1]"), port("redis://h:1"), port("memcached://h")], [6379, 1, 11_211]);
    }

    #[test]
    fn loopback_is_this_machine_and_nothing_else_is_for_certain() {
        let is_local = |text: &str| text.parse::<Target>().unwrap().is_local();
        assert!(is_local("http://127.0.0.2:1") && is_local("http://[::1]:1") && is_local("http://localhost:1"));
        assert!(!is_local("http://10.0.0.1:1") && !is_local("http://cache:1"));
    }

    #[test]
    fn what_is_no_target_is_refused_by_name() {
        for text in
            ["", "localhost:1", "http://", "http://host", "http://:1", "http://h:0", "ftp://h:1", "http://u@h:1"]
        {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text}: http://")), "{error}");
        }
    }
}
