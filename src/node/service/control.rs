//! What the node's thread hears from the hub and says to it, and how it sees processes of this host
//! end: the hub's, and its neighbour's.

use std::io;
use std::sync::atomic::Ordering;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{CONTROL, HUB, NEIGHBOUR, Service};
use crate::node::cut_off::CutOff;
use crate::node::door::token;
use crate::node::frame::{Answer, TABLE_LIMIT, ToHub, ToNode};
use crate::node::making::Word;
use crate::node::neighbour::Next;
use crate::node::wire;
use crate::watch::{Record, Watch};

impl Service {
    /// The control connection has something.
    pub(super) fn hear(&mut self) {
        if self.shared.is_cut_off() {
            return;
        }
        let open = self.inbox.fill(&self.shared.control, TABLE_LIMIT);
        self.obey();
        match open {
            Ok(true) => {}
            Ok(false) => self.be_cut_off(CutOff::HubGone(None)),
            Err(e) if wire::is_changed(&e) => self.distrust_hub(&e),
            Err(e) => {
                tracing::debug!("rank {}: its control connection failed: {e}", self.shared.rank);
                self.be_cut_off(CutOff::HubGone(None));
            }
        }
    }

    /// Do what the hub's frames say.
    pub(super) fn obey(&mut self) {
        loop {
            let frame = self.inbox.next::<ToNode>(TABLE_LIMIT);
            if matches!(frame, Ok(Some(_))) {
                self.shared.doubted.store(false, Ordering::Release);
            }
            match frame {
                Ok(None) => return,
                Ok(Some(ToNode::Here)) => self.shared.hub_answers(),
                Ok(Some(ToNode::Declare { context, verdict })) => self.shared.declare(context, verdict),
                Ok(Some(ToNode::Ask { context, sequence, question, message })) => {
                    let watch = self.shared.contexts.lock().get(&context).map(|r| r.watch.clone());
                    let watch = watch.as_deref();
                    let record = watch.map_or(Record::NotYet(None), |watch| watch.record(sequence));
                    let moved = watch.and_then(|watch| watch.moved_ago(message, &record));
                    let answer = Answer { record, unheard: watch.and_then(Watch::unheard), moved };
                    self.shared.post(&ToHub::Answer { context, sequence, question, answer });
                }
                Ok(Some(ToNode::GoOn { context, message, moved, late })) => {
                    self.shared.go_on(context, message, moved, late)
                }
                Ok(Some(ToNode::Left { context, rank })) => {
                    let watch = self.shared.contexts.lock().get(&context).map(|r| r.watch.clone());
                    if let Some(watch) = watch {
                        watch.depart(rank);
                    }
                }
                Ok(Some(ToNode::Farewell)) => self.farewell = true,
                Ok(Some(ToNode::Made { context, apart })) => self.shared.tell(context, Word::Made { apart }),
                Ok(Some(ToNode::Unmade { context, ranks })) => self.shared.tell(context, Word::Unmade { ranks }),
                Ok(Some(ToNode::Fallen { why })) => {
                    return self.be_cut_off(CutOff::HubGone(Some(why)));
                }
                Ok(Some(ToNode::Table { .. } | ToNode::Again)) => {}
                Ok(Some(ToNode::Failed { what })) => return self.be_cut_off(CutOff::Own(what)),
                Err(e) => return self.distrust_hub(&e),
            }
        }
    }

    /// What came from the hub is not to be trusted, by this error. The hub is told while the other
    /// way still holds, and tells the others.
    fn distrust_hub(&mut self, error: &io::Error) {
        self.be_cut_off(CutOff::Own(match wire::is_changed(error) {
            true => wire::changed_on_the_way(&self.shared.hub.host),
            false => format!("the process that holds the job together sent it {error}"),
        }));
    }

    /// Watch the hub's process.
    pub(super) fn watch_hub(&mut self) {
        match self.neighbours.hub(self.shared.hub.rank, &self.shared.peers) {
            Next::Lives(_, ending) => {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token(HUB, 0));
                self.hub = self.epoll.add(&ending, event).ok().map(|()| ending);
            }
            Next::HasEnded(_) => self.hub_ended(),
            Next::Nobody => {}
        }
    }

    /// The hub's process has ended. What it said before counts.
    pub(super) fn hub_ended(&mut self) {
        if let Some(ending) = self.hub.take() {
            // A child that has a copy of the descriptor must not keep it in the set.
            let _ = self.epoll.delete(&ending);
        }
        self.hear();
        self.be_cut_off(CutOff::HubGone(None));
    }

    /// Watch the process of the next rank of this host.
    pub(super) fn watch_next(&mut self) {
        self.neighbour = loop {
            match self.neighbours.next(&self.shared.peers) {
                Next::HasEnded(rank) => self.shared.post(&ToHub::Ended { rank }),
                Next::Nobody => break None,
                Next::Lives(rank, ending) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, token(NEIGHBOUR, 0));
                    break self.epoll.add(&ending, event).ok().map(|()| (rank, ending));
                }
            }
        };
    }

    /// The watched process has ended.
    pub(super) fn neighbour_ended(&mut self) {
        if let Some((rank, ending)) = self.neighbour.take() {
            let _ = self.epoll.delete(&ending);
            self.shared.post(&ToHub::Ended { rank });
            self.watch_next();
        }
    }

    /// Write what is queued for the hub, and have epoll say when there is room for the rest.
    pub(super) fn flush(&mut self) {
        if self.shared.is_cut_off() {
            return;
        }
        let result = self.shared.outbox.lock().flush(&self.shared.control);
        let done = match result {
            Ok(done) => done,
            // What the hub said last is still to be read; the end of the connection is seen there.
            Err(_) => return self.hear(),
        };
        if self.wants_room == done {
            self.wants_room = !done;
            let more = if done { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | more, token(CONTROL, 0));
            let _ = self.epoll.modify(&self.shared.control, &mut event);
        }
    }
}
