//! What comes on control connections, and unique ids, see [`crate::outside`].

use std::collections::HashSet;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use maypole_transports::tcp::{Opener, Sealer, seal};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use super::auth::outside::openings;
use super::court::Court;
use super::frame::{Late, RANK_LIMIT, ToHub, ToNode};
use super::id::UniqueId;
use super::key::Key;
use super::roster::Roster;
use super::tag::{TAG, Tags, Writer};
use super::wire::{Inbox, Outbox, is_changed};
use crate::error::Verdict;
use crate::outside::input::{Input, flipped};
use crate::running::Moment;

/// Longer texts than ranks send are cut before they get here.
const LONGEST: usize = 64 << 10;

/// Both ends of a connection: what reads here what a rank writes, and what that writes with.
fn ends(encrypted: bool) -> (Inbox, Outbox) {
    let tags = || Tags::new(&Key::new([1; 32]), Writer::Node);
    if !encrypted {
        return (Inbox::new(tags(), None), Outbox::new(tags(), None));
    }
    let (caller, hello) = seal::call(&[7; 32]);
    let (hello, ours) = seal::answer(&[7; 32], &hello).expect("the same key");
    let theirs = caller.answered(&hello).expect("the same key");
    let (sealer, opener) = (Sealer::new(Arc::new(ours), 1), Opener::new(Arc::new(theirs), 1));
    (Inbox::new(tags(), Some(opener)), Outbox::new(tags(), Some(sealer)))
}

/// Take in `wire`, `step` bytes at a time; all frames in it.
fn read<M: DeserializeOwned>(inbox: &mut Inbox, wire: &[u8], step: usize) -> io::Result<Vec<M>> {
    let mut frames = Vec::new();
    for part in wire.chunks(step) {
        inbox.fill(part, RANK_LIMIT)?;
        while let Some(frame) = inbox.next(RANK_LIMIT)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

/// Frames, with tags and without, within records and not.
pub(crate) fn frames(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (choices, step, which) = (input.byte(), usize::from(input.byte()) + 1, input.number());
    let body = input.take(LONGEST);
    // Not often: a handshake takes longer than all else here.
    let (encrypted_in, encrypted_out) = (choices & 15 == 15, choices >> 4 == 15);
    // Without the key nobody makes a frame, whatever it looks like.
    let (mut inbox, _) = ends(encrypted_in);
    assert!(read::<ToHub>(&mut inbox, body, step).map_or(true, |frames| frames.is_empty()), "a frame without a tag");
    // With it, any body.
    let mut wire = Vec::new();
    wire.extend((body.len() as u32).to_le_bytes());
    wire.extend((!(body.len() as u32)).to_le_bytes());
    wire.extend(body);
    wire.extend(Tags::new(&Key::new([1; 32]), Writer::Node).next(&blake3::hash(body)));
    assert_eq!(wire.len(), 8 + body.len() + TAG);
    let error = read::<ToHub>(&mut ends(false).0, &flipped(&wire, which), step).expect_err("a bit was changed");
    assert!(is_changed(&error), "{error}");
    let for_hub = read::<ToHub>(&mut ends(false).0, &wire, step);
    let for_node = read::<ToNode>(&mut ends(false).0, &wire, step);
    let mut whole = false;
    if let Ok([frame]) = for_hub.as_deref() {
        comes_back(frame, encrypted_out, step);
        say_to_hub(frame);
        whole = true;
    }
    if let Ok([frame]) = for_node.as_deref() {
        comes_back(frame, encrypted_out, step);
        say_to_node(frame);
        whole = true;
    }
    whole
}

/// What was read is read the same when it is written again.
fn comes_back<M: Serialize + DeserializeOwned + PartialEq + Debug>(frame: &M, encrypted: bool, step: usize) {
    let (mut inbox, mut outbox) = ends(encrypted);
    outbox.push(frame);
    let mut wire = Vec::new();
    assert!(outbox.flush(&mut wire).expect("a vector takes all"));
    let again = read::<M>(&mut inbox, &wire, step).expect("what was written can be read");
    assert_eq!(again.len(), 1);
    assert_eq!(again[0], *frame);
}

/// What people are told of it.
fn say_to_hub(frame: &ToHub) {
    match frame {
        ToHub::Report { verdict, .. } => say(verdict),
        ToHub::Inquire { operation, .. } => drop((operation.to_string(), operation.digest())),
        ToHub::Register { members, .. } => {
            if let Some(ranks) = members.ranks(64) {
                assert_eq!(super::frame::Runs::new(&ranks).ranks(64), Some(ranks), "no order is lost");
            }
        }
        _ => {}
    }
}

fn say_to_node(frame: &ToNode) {
    match frame {
        ToNode::Declare { verdict, .. } => say(verdict),
        ToNode::GoOn { late: Some(Late { stall, culprits }), .. } => {
            let _ = stall.is_time_to_warn();
            let _ = crate::watch::Late { reporter: 0, stall, culprits }.to_string();
        }
        _ => {}
    }
}

fn say(verdict: &Verdict) {
    let _ = verdict.to_string();
    let short = verdict.clone().cut();
    assert_eq!(short.clone().cut(), short, "what was cut is short enough");
}

/// Whatever ranks that hold the key tell the hub: every letter goes to a rank that is there, no rank is told two verdicts on
/// one communicator, and once all have gone there is nothing more to wait for.
pub(crate) fn court(data: &[u8]) -> bool {
    let mut input = Input(data);
    let size = usize::from(input.byte() % 6) + 1;
    let mut roster = Some(Roster::default());
    let mut court = Court::new((0..size).map(|rank| format!("host{rank}")).collect());
    let mut now = Moment::default();
    let (mut told, mut registered) = (HashSet::new(), HashSet::new());
    let mut letters = 0;
    while !input.is_empty() {
        let (from, pause, body) = (usize::from(input.byte()) % size, input.number(), input.piece());
        now = now + Duration::from_millis(pause as u64);
        let Ok(frame) = postcard::from_bytes::<ToHub>(body) else { continue };
        match frame {
            ToHub::Hello(hello) => roster = roster.and_then(|roster| admit(roster, hello)),
            ToHub::Register { context, members } => {
                court.register(from, context, &members);
                registered.insert(context);
            }
            ToHub::GiveUp { context } => court.give_up(from, context),
            ToHub::Leave { context, records } => court.leave(from, context, records),
            ToHub::Report { context, verdict } => court.report(from, context, verdict, now),
            ToHub::Inquire { context, operation, peer } => court.inquire(from, context, operation, peer, now),
            ToHub::Stalled { context, stall, unheard } => court.stalled(from, context, stall, unheard, now),
            ToHub::Answer { context, sequence, question, answer } => {
                court.answer(from, context, (sequence, question), answer)
            }
            ToHub::Audit { context, records } => court.audit(from, context, records),
            ToHub::Bye => court.departed(from, None),
            ToHub::Fallen { how } => court.departed(from, Some(how)),
            ToHub::Made { context, apart } => court.made(from, context, apart),
            ToHub::WhoMade { context } => court.who_made(from, context),
            ToHub::Ping | ToHub::Ended { .. } | ToHub::Unable { .. } => {}
        }
        court.tick(now);
        for (to, letter) in court.letters() {
            letters += 1;
            assert!(!to.is_empty() && to.iter().all(|rank| *rank < size), "{to:?}: {letter:?}");
            if let ToNode::Declare { context, .. } = letter {
                let twice = to.iter().find(|rank| !told.insert((context, **rank)));
                assert!(twice.is_none(), "rank {twice:?} is told a second verdict");
            }
        }
        // A communicator that all have left is forgotten, and its number may be registered again.
        told.retain(|(context, _)| court.remembers(*context).is_some());
        assert!(registered.iter().all(|context| court.remembers(*context) <= Some(256)), "it keeps too much");
    }
    (0..size).for_each(|rank| court.departed(rank, None));
    assert!(court.over());
    court.tick(now + Duration::from_secs(3600));
    assert_eq!(court.deadline(), None);
    letters > 1
}

fn admit(mut roster: Roster, hello: super::frame::Hello) -> Option<Roster> {
    // A hub does not take in more than it has descriptors for.
    let (size, process) = (hello.size, hello.process);
    if size > 1 << 12 {
        return None;
    }
    if !roster.admit(hello).ok()? {
        let _ = roster.missing(Duration::from_secs(1));
        return Some(roster);
    }
    let (peers, own) = roster.into_table(process);
    assert!(peers.len() == size && peers.iter().enumerate().all(|(rank, peer)| peer.rank == rank) && own.is_some());
    None
}

/// Bytes that are said to be a unique id; with a checksum that fits or as they are.
pub(crate) fn ids(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (mend, which) = (input.byte() & 1 == 1, input.number());
    let mut bytes = input.rest().to_vec();
    if mend {
        bytes.resize(128, 0);
        UniqueId::mend(bytes.first_chunk_mut().expect("128 bytes"));
    }
    let Ok(id) = UniqueId::from_bytes(&bytes) else { return false };
    let addresses: Vec<SocketAddr> = id.addresses();
    assert!((1..=4).contains(&addresses.len()));
    let again = UniqueId::encode(id.random(), &addresses);
    let read = UniqueId::from_bytes(again.as_bytes()).expect("what was made is an id");
    assert_eq!((read.addresses(), read.random()), (addresses, id.random()));
    assert!(UniqueId::from_bytes(&flipped(&bytes, which)).is_err(), "a bit was changed");
    assert!(!format!("{id:?}").is_empty());
    true
}
