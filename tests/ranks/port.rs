//! Ports for tests: free, and kept from everybody else.

use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

/// A port of 127.0.0.1 at which nobody listens. A socket stays bound to it until this process ends, so that the system
/// gives it to no other program meanwhile, as it does with one that was only looked for; whoever is told of it can
/// listen there, as long as its socket too may share an address with others (`SO_REUSEADDR`).
pub fn free_port() -> u16 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket_ipv4().unwrap().port();
    std::mem::forget(socket);
    port
}
