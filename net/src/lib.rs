//! Sockets, HTTP/2, gRPC and the mailboxes between cores: how a core of Milena talks.
