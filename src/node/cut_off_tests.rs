//! What becomes of a rank that is cut off from the hub, and what it says then, whichever way that
//! comes: the hub is this test's.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, ReduceOp};
use nix::poll::PollFlags;
use serde::Serialize;

use super::auth::{Guest, HUB, Purpose, Standing, wait};
use super::frame::{Hello, HubPlace, RANK_LIMIT, ToHub, ToNode};
use super::key::Key;
use super::peer::Peer;
use super::tag::Writer;
use super::wire::{Inbox, Outbox};
use super::{Meeting, Node, UniqueId};
use crate::config::Config;
use crate::error::Verdict;
use crate::fingerprint::Fingerprint;
use crate::watch::{Jury, Stall, Watch};

/// No test takes as long.
const LONG: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(1);

fn text(text: &str) -> String {
    text.to_string()
}

fn operation() -> Fingerprint {
    Fingerprint::collective(1, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, 4)
}

/// A hub that has let rank 0 of a world of two in. It is said to be in rank 1's process, elsewhere.
struct Hub {
    stream: TcpStream,
    inbox: Inbox,
    outbox: Outbox,
}

impl Hub {
    /// With the node of rank 0.
    fn start() -> (Hub, Arc<Node>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (config, random) = (Config::default(), [3; 32]);
        let key = Key::of_world(&random, 0, &config);
        let id = UniqueId::encode(&random, &[listener.local_addr().unwrap()]);
        let node = std::thread::spawn(move || Node::join(Meeting::Id(id), 0, 2, &config).unwrap());
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let until = Instant::now() + LONG;
        let mut guest = Guest::new(stream.try_clone().unwrap(), until);
        let session = loop {
            match guest.advance(&key, HUB, Purpose::Control) {
                Standing::Waiting => wait(&stream, PollFlags::POLLIN, until, &|| false).unwrap(),
                Standing::Admitted(_, session) => break session,
                rejected => panic!("{rejected:?}"),
            }
        };
        let (inbox, outbox) = session.into_frames(Writer::Hub);
        let mut hub = Hub { stream, inbox, outbox };
        let Some(ToHub::Hello(Hello { peer, .. })) = hub.hear() else { panic!("it greets") };
        let host = text("elsewhere");
        let place = HubPlace { rank: Some(1), host: host.clone(), pid: 7, process: 7 };
        let other = Peer { rank: 1, host, host_id: !peer.host_id, pid: 7, ..peer.clone() };
        hub.say(&ToNode::Table { peers: vec![peer, other], hub: place });
        (hub, node.join().unwrap())
    }

    fn say(&mut self, frame: &impl Serialize) {
        self.outbox.push(frame);
        assert!(self.outbox.flush(&self.stream).unwrap(), "there is room");
    }

    /// The node's next word; `None` once it has said its last.
    fn hear(&mut self) -> Option<ToHub> {
        let mut open = true;
        loop {
            if let Some(frame) = self.inbox.next(RANK_LIMIT).unwrap() {
                return Some(frame);
            }
            if !open {
                return None;
            }
            wait(&self.stream, PollFlags::POLLIN, Instant::now() + LONG, &|| false).unwrap();
            open = self.inbox.fill(&self.stream, RANK_LIMIT).unwrap();
        }
    }
}

/// What a rank believes and says once it is cut off.
#[derive(Debug, PartialEq)]
struct CutOff {
    /// The verdict on the communicator that it had.
    verdict: Verdict,
    /// On one that it makes afterwards.
    later: Verdict,
    /// What it has said to the hub since.
    said: Vec<ToHub>,
}

/// What becomes of rank 0 where this happens to it and the hub.
fn cut_off(happens: impl FnOnce(&mut Hub, &Node)) -> CutOff {
    let (mut hub, node) = Hub::start();
    let register = |context| {
        let (watch, (wake, woken)) = (Arc::<Watch>::default(), mpsc::channel());
        watch.on_verdict(Box::new(move || _ = wake.send(())));
        node.register(context, vec![0, 1], watch.clone());
        move || {
            woken.recv_timeout(LONG).expect("a verdict");
            watch.verdict().expect("it was woken by one")
        }
    };
    let verdict = register(1);
    assert!(matches!(hub.hear(), Some(ToHub::Register { context: 1, .. })));
    happens(&mut hub, &node);
    let verdict = verdict();
    let later = register(2)();
    let said = std::iter::from_fn(|| hub.hear()).collect();
    CutOff { verdict, later, said }
}

/// What a rank that can go on no longer believes and says: that it is gone itself, and `how`.
fn falls(how: String) -> CutOff {
    let host = super::peer::host_name();
    let verdict = Verdict::Died { rank: 0, host, how: how.clone() };
    CutOff { later: verdict.clone(), verdict, said: vec![ToHub::Fallen { how }] }
}

/// That the hub is gone; what else the hub has said of that.
fn hub_is_gone(why: &str) -> Verdict {
    let how = format!("its process, which held the job together, ended or cannot be reached{why}");
    Verdict::Died { rank: 1, host: text("elsewhere"), how }
}

#[test]
fn what_came_was_changed_on_the_way() {
    let cut_off = cut_off(|hub, _| {
        let mut bytes = Vec::new();
        hub.outbox.push(&ToNode::Here);
        hub.outbox.flush(&mut bytes).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        hub.stream.write_all(&bytes).unwrap();
    });
    assert_eq!(cut_off, falls(super::wire::changed_on_the_way("elsewhere")));
}

#[test]
fn what_came_makes_no_sense() {
    let cut_off = cut_off(|hub, _| hub.say(&[0xee_u8; 2]));
    let Verdict::Died { how, .. } = &cut_off.verdict else { panic!("{cut_off:?}") };
    assert!(how.contains("a frame that does not parse"), "{how}");
    let how = how.clone();
    assert_eq!(cut_off, falls(how));
}

#[test]
fn the_hub_sends_it_away() {
    let cut_off = cut_off(|hub, _| hub.say(&ToNode::Failed { what: text("be off") }));
    assert_eq!(cut_off, falls(text("be off")));
}

#[test]
fn the_hub_says_that_it_ends() {
    let cut_off = cut_off(|hub, _| hub.say(&ToNode::Fallen { why: text("a defect") }));
    let gone = hub_is_gone(": a defect");
    assert_eq!(cut_off, CutOff { later: gone.clone(), verdict: gone, said: vec![] });
}

#[test]
fn the_hub_is_gone() {
    let cut_off = cut_off(|hub, _| hub.stream.shutdown(Shutdown::Write).unwrap());
    let gone = hub_is_gone("");
    assert_eq!(cut_off, CutOff { later: gone.clone(), verdict: gone, said: vec![] });
}

/// It declares alone what it must, tells a hub that was only stopped, and is of the job no longer.
#[test]
fn the_hub_is_silent() {
    let stall = Stall::at_last(operation(), DEADLINE);
    let cut_off = cut_off(|_, node| {
        node.doubt(1);
        node.stalled(1, 0, stall);
    });
    let state = text("its process, which holds the job together, does not answer");
    let culprits = vec![(1, text("elsewhere"), state)];
    let (operation, after) = (operation(), DEADLINE);
    let verdict = Verdict::Stalled { operation, reporter: 0, after, culprits };
    let how = "the process that holds the job together did not answer it, and it gave the job up";
    let said = vec![
        ToHub::Ping,
        ToHub::Stalled { context: 1, stall, unheard: None },
        ToHub::Report { context: 1, verdict: verdict.clone() },
        ToHub::Fallen { how: text(how) },
    ];
    assert_eq!(cut_off, CutOff { later: hub_is_gone(""), verdict, said });
}
