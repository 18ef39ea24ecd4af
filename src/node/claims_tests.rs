//! What a process that holds the key cannot do in another rank's name.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auth::{Errand, HUB, Purpose};
use super::frame::{Hello, ToHub, ToNode};
use super::key::Key;
use super::peer::Settings;
use super::session::Session;
use super::tag::Writer;
use super::{Meeting, Node, Peer, UniqueId, dial};
use crate::config::Config;

const DATA: Errand =
    Errand { purpose: Purpose::Data, sealed: false, from: 0, to: 1, context: 7, channel: 0, index: 0, total: 2 };

fn pair(id: &UniqueId, config: &Config) -> [Arc<Node>; 2] {
    std::thread::scope(|scope| {
        let join = |rank| scope.spawn(move || Node::join(Meeting::Id(*id), rank, 2, config).unwrap());
        [0, 1].map(join).map(|rank| rank.join().unwrap())
    })
}

fn call(to: &[SocketAddr], key: &Key, errand: &Errand) -> (TcpStream, Session) {
    let soon = Instant::now() + Duration::from_secs(20);
    let (stream, _, session) = dial::call(to, None, key, errand, soon, &|| false).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (stream, session)
}

fn wait_accepted(node: &Node, context: u64, connections: usize) -> Vec<TcpStream> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(wires) = node.accepted(0, context, 0, connections) {
            return wires.into_iter().map(|wire| wire.stream).collect();
        }
        assert!(Instant::now() < until, "the connections have not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_first_arrival_keeps_its_place() {
    let config = Config::default();
    let nodes = pair(&UniqueId::create(&config).unwrap(), &config);
    let (door, key) = (nodes[1].peers()[1].data.clone(), nodes[0].shared.key.clone());
    let call_data = |errand: &Errand| call(&door, &key, errand).0;
    let closed = |mut stream: TcpStream| matches!(stream.read(&mut [0]), Ok(0));
    let mut first = call_data(&DATA);
    first.write_all(b"1").unwrap();
    assert!(closed(call_data(&DATA)), "a second one for the place");
    assert!(closed(call_data(&Errand { index: 1, total: 3, ..DATA })), "one of another set");
    let _second = call_data(&Errand { index: 1, ..DATA });
    let mut streams = wait_accepted(&nodes[1], DATA.context, 2);
    streams[0].set_nonblocking(false).unwrap();
    let mut byte = [0];
    streams[0].read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"1", "the first is the one that is given out");
    // A caller that went away without having heard that it was let in calls again.
    let alone = Errand { context: 8, total: 1, ..DATA };
    drop(call_data(&alone));
    let until = Instant::now() + Duration::from_secs(20);
    while !nodes[1].shared.arrivals.lock().contains_key(&(0, alone.context, 0)) {
        assert!(Instant::now() < until, "the connection has not come");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(nodes[1].accepted(0, alone.context, 0, 1).is_none(), "what has been closed is given out");
    let mut again = call_data(&alone);
    again.write_all(b"2").unwrap();
    let mut streams = wait_accepted(&nodes[1], alone.context, 1);
    streams[0].set_nonblocking(false).unwrap();
    streams[0].read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"2");
}

#[test]
fn nobody_introduces_itself_as_another_rank_than_it_called_as() {
    let config = Config::default();
    let id = UniqueId::create(&config).unwrap();
    let key = Key::of_world(id.random(), 0, &config);
    let errand = Errand { purpose: Purpose::Control, from: 1, to: HUB, context: 0, total: 0, ..DATA };
    let (stream, session) = call(&id.addresses(), &key, &errand);
    let peer = Peer {
        rank: 0,
        host: "elsewhere".into(),
        host_id: 1,
        pid: 1,
        data: Vec::new(),
        local: String::new(),
        cores: 1,
        affinity: Vec::new(),
    };
    let (mut inbox, mut outbox) = session.into_frames(Writer::Node);
    let (version, settings) = (env!("CARGO_PKG_VERSION").into(), Settings::of(&config));
    outbox.push(&ToHub::Hello(Hello { size: 2, version, process: 1, peer, settings }));
    assert!(outbox.flush(&stream).unwrap());
    assert!(!inbox.fill(&stream, 1 << 20).unwrap(), "it is closed, and rank 0's place is free");
    assert_eq!(inbox.next::<ToNode>(1 << 20).unwrap(), None);
    pair(&id, &config);
}
