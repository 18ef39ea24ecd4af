//! The order of a process group's asynchronous calls, and the thread that runs them.
//!
//! Jobs run one after the other, in the order in which they were queued, by whoever has the *turn*. The lane's thread
//! takes it when there is something to do; it needs no interpreter for jobs that are plain calls, so these go on while
//! Python computes. Who waits for a job takes the turn if nobody has it, and runs what is in front of the job and the job
//! itself: a call that is waited for at once mostly costs no change of threads.
//!
//! A job that completes a future runs the future's callbacks. What they call is run there and then, in front of what is
//! queued, so that it has the same place in the order on every rank.
//!
//! # Locks
//! `queue` is held for a few instructions and nothing is asked for meanwhile, so it may be asked for with the
//! interpreter's lock held. `turn` is held while jobs run, and jobs may need the interpreter: nobody who is in the
//! interpreter waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use maypole_transports::lock::{Condvar, Mutex};
use pyo3::prelude::*;

use super::job::{Handle, Job};
use crate::{error, process, waiting};

/// How often a thread that waits has Python run the handlers of signals.
const SLICE: Duration = Duration::from_millis(50);

struct Queue {
    jobs: VecDeque<Arc<Job>>,
    /// The thread was started.
    started: bool,
    /// The thread sleeps, or is about to, and wants to be told of a job.
    sleeping: bool,
    closed: bool,
}

struct Lane {
    name: String,
    queue: Mutex<Queue>,
    news: Condvar,
    turn: Mutex<()>,
    /// The thread that has the turn, by [`me`]; 0 if nobody.
    runner: AtomicUsize,
}

/// This thread, as a number that no other has now and that is not 0.
fn me() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place).addr())
}

/// Says, while it lives, that this thread has the turn.
struct Running<'a>(&'a Lane);

impl<'a> Running<'a> {
    fn new(lane: &'a Lane) -> Running<'a> {
        lane.runner.store(me(), Ordering::Relaxed);
        Running(lane)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.runner.store(0, Ordering::Relaxed);
    }
}

impl Lane {
    /// Whether this thread has the turn. Others' stores do not matter: they never store this thread's number.
    fn is_mine(&self) -> bool {
        self.runner.load(Ordering::Relaxed) == me()
    }

    fn next(&self) -> Option<Arc<Job>> {
        self.queue.lock().jobs.pop_front()
    }

    /// What the thread does.
    fn serve(&self) {
        loop {
            let mut queue = self.queue.lock();
            while queue.jobs.is_empty() {
                if queue.closed {
                    return;
                }
                queue.sleeping = true;
                self.news.wait(&mut queue);
                queue.sleeping = false;
            }
            drop(queue);
            let _turn = self.turn.lock();
            let _running = Running::new(self);
            if let Some(job) = self.next() {
                // Handlers of signals run on the main thread, which this is not.
                let _ = job.run(None);
            }
        }
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.news.notify_one();
    }
}

/// A lane as an object of Python's.
#[pyclass(module = "maypole._maypole", name = "TorchLane", frozen)]
pub struct Order {
    lane: Arc<Lane>,
    /// The process that made it. In a child made by fork there is no thread, and a lock may be held for ever.
    generation: u64,
}

impl Order {
    /// Queue a job, or run it at once if it comes from a callback of the job that is running.
    pub fn queue(&self, py: Python<'_>, job: &Arc<Job>) -> PyResult<()> {
        let lane = &*self.lane;
        if !lane.is_mine() {
            let mut queue = lane.queue.lock();
            if !queue.closed {
                if !queue.started {
                    let (lane, thread) = (self.lane.clone(), std::thread::Builder::new().name(lane.name.clone()));
                    if let Err(e) = thread.spawn(move || lane.serve()) {
                        drop(queue);
                        let doing = "starting a process group's thread".into();
                        return Err(error::to_py(py, maypole::Error::System { doing, what: e.to_string() }));
                    }
                    queue.started = true;
                }
                queue.jobs.push_back(job.clone());
                // It is told once: that it is awake shows only when it has the lock again.
                let tell = std::mem::take(&mut queue.sleeping);
                drop(queue);
                if tell {
                    lane.news.notify_one();
                }
                return Ok(());
            }
        }
        // After the lane was closed there is no group to call, as the job will find.
        job.run(Some(py)).map_or(Ok(()), Err)
    }

    fn finish(&self, py: Python<'_>, job: &Job) -> PyResult<()> {
        let lane = &*self.lane;
        let run = || {
            while !job.is_done()
                && let Some(next) = lane.next()
            {
                if let Some(raised) = next.run(Some(py)) {
                    return Err(raised);
                }
            }
            Ok(())
        };
        if lane.is_mine() {
            run()?;
        } else if let Some(_turn) = lane.turn.try_lock() {
            let _running = Running::new(lane);
            run()?;
        }
        while !job.is_done() {
            waiting::detached(py, || job.wait_for(SLICE));
            py.check_signals()?;
        }
        Ok(())
    }
}

#[pymethods]
impl Order {
    /// An empty lane. `name`: its thread's.
    #[new]
    fn new(name: String) -> Order {
        let queue = Queue { jobs: VecDeque::new(), started: false, sleeping: false, closed: false };
        let lane = Lane {
            name,
            queue: Mutex::new(queue),
            news: Condvar::new(),
            turn: Mutex::new(()),
            runner: AtomicUsize::new(0),
        };
        Order { lane: Arc::new(lane), generation: process::generation() }
    }

    /// Whether a call made now on this thread would be next.
    fn is_idle(&self) -> bool {
        let runner = self.lane.runner.load(Ordering::Relaxed);
        (runner == 0 || runner == me()) && self.lane.queue.lock().jobs.is_empty()
    }

    /// Queue a job, or run it at once if it comes from a callback of the job that is running.
    fn submit(&self, py: Python<'_>, job: &Handle) -> PyResult<()> {
        self.queue(py, &job.0)
    }

    /// Return when a job that was queued here is done, or raise its exception. It is run here if nobody is at it.
    fn wait(&self, py: Python<'_>, job: &Handle) -> PyResult<()> {
        if !job.0.is_done() {
            self.finish(py, &job.0)?;
        }
        job.0.exception(py).map_or(Ok(()), Err)
    }

    /// Wait for at most so many seconds for others to do it: whether it is done.
    fn wait_for(&self, py: Python<'_>, job: &Handle, seconds: f64) -> PyResult<bool> {
        let end = Instant::now() + super::seconds(py, seconds)?.min(Duration::from_secs(1 << 30));
        while !job.0.is_done() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            waiting::detached(py, || job.0.wait_for(left.min(SLICE)));
            py.check_signals()?;
        }
        Ok(true)
    }

    /// Return when all that was queued is done, and have the thread end.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let lane = &*self.lane;
        loop {
            let Some(last) = lane.queue.lock().jobs.back().cloned() else { break };
            self.finish(py, &last)?;
        }
        if !lane.is_mine() {
            // The last job may have been taken, and not be done.
            waiting::detached(py, || drop(lane.turn.lock()));
        }
        lane.close();
        Ok(())
    }

    /// The same, but wait at most so many seconds: whether all is done. What has not begun by then never does, and whoever
    /// waits for it is told so; what has begun goes on.
    fn leave(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let lane = &*self.lane;
        let end = Instant::now() + super::seconds(py, seconds)?.min(Duration::from_secs(1 << 30));
        let left = || end.saturating_duration_since(Instant::now());
        // None is run here: nobody could end this thread's part in a call that lasts.
        let last = lane.queue.lock().jobs.back().cloned();
        if let Some(last) = last {
            while !last.is_done() && !left().is_zero() {
                waiting::detached(py, || last.wait_for(left().min(SLICE)));
                py.check_signals()?;
            }
        }
        // The last job may have been taken, and not be done.
        let idle = lane.is_mine() || waiting::detached(py, || lane.turn.try_lock_for(left()).is_some());
        lane.close();
        let rest = std::mem::take(&mut lane.queue.lock().jobs);
        for job in &rest {
            job.refuse(py, "the call was still queued when its process group was left, and will not be made");
        }
        Ok(idle && rest.is_empty())
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if self.generation == process::generation() {
            self.lane.close();
        }
    }
}
