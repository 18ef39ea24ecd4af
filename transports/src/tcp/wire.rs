//! A connection as a link takes it over.

use std::net::TcpStream;

use super::seal::Seal;

/// A connected socket, and its keys if what it carries is encrypted.
#[derive(Debug)]
pub struct Wire {
    /// The socket. No byte that belongs to the link has been read from it or written to it.
    pub stream: TcpStream,
    /// What both ends agreed on; `None`: bytes go as they are.
    pub seal: Option<Seal>,
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Wire {
        Wire { stream, seal: None }
    }
}
