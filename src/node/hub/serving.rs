//! What ranks say on their connections, from the first word to the end, however that comes.

use std::collections::HashSet;
use std::io;
use std::net::TcpStream;
use std::time::Instant;

use super::gathering::HELD;
use super::{Hub, Phase};
use crate::node::frame::{HELLO_LIMIT, RANK_LIMIT, ToHub, ToNode};
use crate::node::lines::Line;
use crate::node::session::Session;
use crate::node::{peer, silence, wire};

/// How a rank died that left without a word.
const ENDED: &str = "its process ended without leaving the job";

impl Hub {
    /// A connection has shown the key.
    pub(super) fn greet(&mut self, stream: TcpStream, caller: usize, session: Session) {
        if let Err(e) = silence::keep_alive(&stream, self.timeout) {
            tracing::debug!("no keep-alive on a control connection: {e}");
        }
        if let Some(id) = self.lines.add(stream, caller, session, &self.epoll) {
            self.hear(id);
        }
    }

    /// Something happened on a connection.
    pub(super) fn hear(&mut self, id: u64) {
        let Some(line) = self.lines.get_mut(id) else { return };
        let limit = if line.known.is_some() { RANK_LIMIT } else { HELLO_LIMIT };
        let open = line.inbox.fill(&line.stream, limit);
        loop {
            let Some(line) = self.lines.get_mut(id) else { return };
            let limit = if line.known.is_some() { RANK_LIMIT } else { HELLO_LIMIT };
            match line.inbox.next::<ToHub>(limit) {
                Ok(Some(ToHub::Hello(hello))) if line.known.is_none() => self.introduce(id, hello),
                Ok(Some(ToHub::Unable { rank, size, why })) if line.known.is_none() => {
                    return self.excuse(id, rank, size, why);
                }
                Ok(Some(frame)) if line.known.is_some() => self.serve(id, frame),
                Ok(None) => break,
                Ok(Some(_)) => return self.hang_up(id, "it did not introduce itself"),
                Err(e) => return self.distrust(id, &e),
            }
        }
        match open {
            Ok(true) => {}
            Ok(false) => self.hang_up(id, ENDED),
            Err(e) if wire::is_changed(&e) => self.distrust(id, &e),
            Err(e) => {
                let how = self.fate(id, &e);
                self.hang_up(id, &how);
            }
        }
    }

    /// A rank says something.
    fn serve(&mut self, id: u64, frame: ToHub) {
        let Some((from, _)) = self.lines.get(id).and_then(|l| l.known) else { return };
        let Phase::Running { court, ranks, active, .. } = &mut self.phase else { return };
        #[cfg(test)]
        if let ToHub::Register { context, .. } = &frame {
            use crate::node::defect_tests::{HUB, plant};
            plant(HUB, *context);
        }
        let now = self.clock.shown();
        if !matches!(frame, ToHub::Answer { .. } | ToHub::Ping) {
            *active = now;
        }
        match frame {
            ToHub::Hello(_) | ToHub::Unable { .. } => self.hang_up(id, "it introduced itself twice"),
            ToHub::Register { context, members } => court.register(from, context, &members),
            ToHub::GiveUp { context } => court.give_up(from, context),
            ToHub::Leave { context, records } => court.leave(from, context, records),
            ToHub::Report { context, verdict } => court.report(from, context, verdict, now),
            ToHub::Inquire { context, operation, peer } => court.inquire(from, context, operation, peer, now),
            ToHub::Stalled { context, stall, unheard } => court.stalled(from, context, stall, unheard, now),
            ToHub::Answer { context, sequence, question, answer } => {
                court.answer(from, context, (sequence, question), answer)
            }
            ToHub::Ping => self.lines.send(id, &ToNode::Here),
            ToHub::Audit { context, records } => court.audit(from, context, records),
            ToHub::Bye => self.let_go(id, from, None),
            ToHub::Fallen { how } => self.let_go(id, from, Some(how)),
            ToHub::Ended { rank } => self.ended.extend(ranks.get(rank).copied()),
            ToHub::Made { context, apart } => court.made(from, context, apart),
            ToHub::WhoMade { context } => court.who_made(from, context),
        }
    }

    /// A rank leaves.
    fn let_go(&mut self, id: u64, rank: usize, how: Option<String>) {
        let Phase::Running { court, .. } = &mut self.phase else { return };
        court.departed(rank, how);
        self.lines.send(id, &ToNode::Farewell);
    }

    /// How connection `id` came to an end by `error`, for people.
    pub(super) fn fate(&mut self, id: u64, error: &io::Error) -> String {
        if !silence::is_silence(error) {
            return match error.kind() {
                io::ErrorKind::ConnectionReset => ENDED.to_string(),
                _ => format!("its control connection failed ({error})"),
            };
        }
        let own = self.lines.get(id).and_then(|line| line.known).map(|(rank, _)| rank);
        let silent = self.lines.unanswered(Instant::now()).iter().copied();
        let ranks: Vec<usize> = silent.filter(|rank| Some(*rank) != own).collect();
        let as_little = match &ranks[..] {
            [] => String::new(),
            ranks => {
                format!(", nor of late from the hosts of world ranks {}", silence::list(ranks))
            }
        };
        format!(
            "nothing has come from its host for {:?}{as_little}; it is down, or the network \
             between it and host {} is cut",
            silence::patience(self.timeout),
            peer::host_name()
        )
    }

    /// What came on a connection is not to be trusted, by this error. Its rank is told why it is
    /// hung up on, while that way still holds, so that it fails as the others do.
    fn distrust(&mut self, id: u64, error: &io::Error) {
        let changed = wire::is_changed(error);
        let how = match changed {
            true => wire::changed_on_the_way(&peer::host_name()),
            false => format!("its control connection carried {error}"),
        };
        let Some(line) = self.lines.get_mut(id) else { return };
        // Nobody is known by a first frame that was changed, but by the key that it showed.
        if changed && matches!(self.phase, Phase::Gathering(_)) {
            line.known = line.known.or(Some((line.caller, false)));
        }
        line.last_words(&ToNode::Failed { what: how.clone() });
        self.hang_up(id, &how);
    }

    /// A connection is over.
    pub(super) fn hang_up(&mut self, id: u64, how: &str) {
        let Some(line) = self.lines.remove(id, &self.epoll) else { return };
        let Some((rank, _)) = line.known else { return };
        match &mut self.phase {
            Phase::Gathering(roster) => {
                // Where nobody has said how many there are, those who come until the time is up are
                // told.
                let (what, size) = (roster.lost(rank, how), roster.size().unwrap_or(usize::MAX));
                self.fail(what, size, HashSet::from([rank]), Instant::now() + HELD);
            }
            Phase::Failed { held, told, .. } => {
                held.remove(&id);
                told.insert(rank);
            }
            Phase::Running { court, active, .. } => {
                *active = self.clock.shown();
                court.departed(rank, Some(how.to_string()));
            }
        }
    }

    /// Hang up on processes that have ended, as their neighbours say.
    pub(super) fn hang_up_on_ended(&mut self) {
        for id in std::mem::take(&mut self.ended) {
            // What it said before it ended counts.
            let says_more = |line: &Line| matches!(line.stream.peek(&mut [0]), Ok(1..));
            while self.lines.get(id).is_some_and(says_more) {
                self.hear(id);
            }
            self.hang_up(id, ENDED);
        }
    }
}
