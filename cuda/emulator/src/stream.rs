//! Streams: queues of commands, each run in order by a thread of its own.
//!
//! Streams know nothing of each other except what CUDA promises: a command may wait for *markers*, positions that other
//! streams must have passed. The legacy default stream is made of them (it waits for what every blocking stream has
//! been given so far, and they for it), and so are shared hardware queues (switch `CONNECTIONS`).
//!
//! A stream's thread is made with its first command, sleeps on a condition variable while there is nothing to do, and
//! ends after some idle seconds; the next command makes another.

use crate::abi::*;
use crate::chaos::Mood;
use crate::context::Context;
use crate::switches::{Droppable, SWITCHES};
use crate::work::Work;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How a stream takes part in the legacy default stream's implicit order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamKind {
    /// It is the legacy default stream.
    Legacy,
    /// It waits for the legacy default stream, which waits for it.
    Blocking,
    /// Neither.
    NonBlocking,
}

/// A stream.
pub struct Stream {
    /// Counts streams of the process; chaos and hardware queues go by it.
    pub number: u64,
    pub context: Arc<Context>,
    /// The green context to which it belongs, if it does.
    pub green: Option<usize>,
    pub kind: StreamKind,
    pub priority: i32,
    queue: Mutex<Queue>,
    /// There is a command, or the stream was destroyed.
    given: Condvar,
    /// A command has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// Commands ever given.
    submitted: u64,
    /// Commands that have ended. A position is passed when this is as large.
    completed: u64,
    has_thread: bool,
    destroyed: bool,
    capture: Capture,
}

struct Command {
    work: Work,
    after: Vec<Marker>,
}

/// What has become of a capture.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capture {
    /// There is none.
    #[default]
    None,
    /// Commands are recorded in place of being run: a count of them, which is all that is kept, and who began it.
    Recording { id: u64, commands: usize, thread: Option<std::thread::ThreadId> },
    /// Something that is not allowed while capturing was called.
    Invalidated { id: u64 },
}

/// A stream and a count of its commands: passed when that many have ended.
struct Marker {
    stream: Arc<Stream>,
    position: u64,
}

static NUMBERS: AtomicU64 = AtomicU64::new(0);
/// Threads that now play streams.
pub static THREADS: AtomicU64 = AtomicU64::new(0);
/// Commands that have ended, of all streams.
pub static COMMANDS: AtomicU64 = AtomicU64::new(0);

impl Stream {
    pub fn make(context: &Arc<Context>, kind: StreamKind, priority: i32) -> Arc<Stream> {
        Stream::make_in(context, kind, priority, None)
    }

    /// The same, of a green context.
    pub fn make_in(context: &Arc<Context>, kind: StreamKind, priority: i32, green: Option<usize>) -> Arc<Stream> {
        let stream = Arc::new(Stream {
            number: NUMBERS.fetch_add(1, Relaxed),
            context: context.clone(),
            green,
            kind,
            priority,
            queue: Mutex::new(Queue::default()),
            given: Condvar::new(),
            ended: Condvar::new(),
        });
        let mut submission = context.submission.lock();
        submission.streams.retain(|stream| stream.strong_count() > 0);
        submission.streams.push(Arc::downgrade(&stream));
        stream
    }

    /// Queues a command. Returns the position that is passed when it has ended; `None` if a capture has swallowed it.
    pub fn submit(self: &Arc<Stream>, work: Work) -> Outcome<Option<u64>> {
        self.context.check()?;
        let mut submission = self.context.submission.lock();
        {
            let mut queue = self.queue.lock();
            match &mut queue.capture {
                Capture::None => {}
                Capture::Recording { commands, .. } => {
                    *commands += 1;
                    return Ok(None);
                }
                Capture::Invalidated { .. } => return Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
            }
        }
        self.await_room();
        let mut after = Vec::new();
        if self.kind == StreamKind::Legacy {
            let others: Vec<_> = submission.streams.iter().filter_map(Weak::upgrade).collect();
            let blocking = others.into_iter().filter(|other| other.kind == StreamKind::Blocking);
            for other in blocking {
                if other.is_capturing() {
                    other.invalidate_capture();
                    return Err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
                }
                after.extend(Marker::now(other));
            }
        } else if self.kind == StreamKind::Blocking
            && let Some(legacy) = self.context.legacy_if_used()
        {
            after.extend(Marker::now(legacy.clone()));
        }
        if !after.is_empty() && SWITCHES.drops(Droppable::Legacy) {
            after.clear();
        }
        let mut queue = self.queue.lock();
        queue.submitted += 1;
        let position = queue.submitted;
        let connections = SWITCHES.connections.load(Relaxed);
        if connections > 0 {
            let last = (Arc::downgrade(self), position);
            if let Some((other, position)) = submission.last_of_queue.insert(self.number % connections, last)
                && let Some(stream) = other.upgrade()
                && stream.number != self.number
            {
                after.push(Marker { stream, position });
            }
        }
        queue.commands.push_back(Command { work, after });
        if queue.has_thread {
            self.given.notify_one();
        } else {
            queue.has_thread = true;
            let stream = self.clone();
            let name = format!("stream {}", self.number);
            // A machine that gives no thread cannot emulate anything more.
            std::thread::Builder::new().name(name).spawn(move || stream.run()).expect("a thread for a stream");
        }
        Ok(Some(position))
    }

    /// Waits until the queue has room (switch `QUEUE`). The caller holds the context's lock, and goes on holding it.
    fn await_room(&self) {
        let most = SWITCHES.queue.load(Relaxed);
        if most == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        while queue.submitted - queue.completed >= most {
            self.ended.wait(&mut queue);
        }
    }

    /// The stream's thread.
    fn run(self: Arc<Stream>) {
        THREADS.fetch_add(1, Relaxed);
        let mut mood = Mood::of_stream(self.number);
        loop {
            let mut queue = self.queue.lock();
            while queue.commands.is_empty() {
                let idle = self.given.wait_for(&mut queue, Duration::from_secs(3)).timed_out();
                if queue.commands.is_empty() && (idle || queue.destroyed) {
                    queue.has_thread = false;
                    THREADS.fetch_sub(1, Relaxed);
                    return;
                }
            }
            let Some(mut command) = queue.commands.pop_front() else { continue };
            // A write that asks for no barrier may be seen before what was written ahead of it.
            let overtaking = command.work.can_be_overtaken()
                && matches!(queue.commands.front(), Some(next) if next.after.is_empty() && next.work.overtakes())
                && mood.swaps();
            if overtaking && let Some(next) = queue.commands.front_mut() {
                std::mem::swap(&mut command.work, &mut next.work);
            }
            drop(queue);
            for marker in command.after {
                marker.stream.wait_for(marker.position);
            }
            mood.before_command();
            command.work.run(&self.context);
            COMMANDS.fetch_add(1, Relaxed);
            self.queue.lock().completed += 1;
            self.ended.notify_all();
        }
    }

    /// Waits until the stream has passed a position.
    pub fn wait_for(&self, position: u64) {
        let mut queue = self.queue.lock();
        while queue.completed < position {
            self.ended.wait(&mut queue);
        }
    }

    /// The position that is passed when everything given so far has ended.
    pub fn submitted(&self) -> u64 {
        self.queue.lock().submitted
    }

    pub fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.completed == queue.submitted
    }

    /// The stream's thread ends when all is done.
    pub fn destroy(&self) {
        self.queue.lock().destroyed = true;
        self.given.notify_all();
    }

    pub fn capture(&self) -> Capture {
        self.queue.lock().capture
    }

    pub fn is_capturing(&self) -> bool {
        self.capture() != Capture::None
    }

    pub fn set_capture(&self, capture: Capture) {
        self.queue.lock().capture = capture;
    }

    /// Something was called that a capture does not survive.
    pub fn invalidate_capture(&self) {
        let mut queue = self.queue.lock();
        if let Capture::Recording { id, .. } = queue.capture {
            queue.capture = Capture::Invalidated { id };
        }
    }
}

impl Marker {
    /// Everything given to the stream so far; nothing if that has ended.
    fn now(stream: Arc<Stream>) -> Option<Marker> {
        let queue = stream.queue.lock();
        let position = queue.submitted;
        let pending = queue.completed < position;
        drop(queue);
        pending.then_some(Marker { stream, position })
    }
}
