//! Events. What a wait, a query or a time refers to is the event's most recent *recording* at the moment of the call.

use crate::abi::*;
use crate::call::{Handles, entries, give};
use crate::context::{Context, current};
use crate::stream::Stream;
use crate::streams::stream_of;
use crate::switches::{Droppable, SWITCHES};
use crate::work::Work;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

/// An event.
pub struct Event {
    pub context: Arc<Context>,
    timing: bool,
    last: Mutex<Option<Arc<Recording>>>,
}

/// One `cuEventRecord`: it happens once.
#[derive(Default)]
pub struct Recording {
    at: Mutex<Option<Instant>>,
    happened: Condvar,
}

impl Recording {
    pub fn happens(&self) {
        *self.at.lock() = Some(Instant::now());
        self.happened.notify_all();
    }

    pub fn wait(&self) {
        let mut at = self.at.lock();
        while at.is_none() {
            self.happened.wait(&mut at);
        }
    }

    pub fn time(&self) -> Option<Instant> {
        *self.at.lock()
    }
}

pub static EVENTS: LazyLock<Handles<Event>> = LazyLock::new(|| Handles::new(HashMap::new()));

const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;

fn record(event: &Event, stream: &Arc<Stream>) -> Outcome {
    if event.context.handle != stream.context.handle {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    let recording = Arc::new(Recording::default());
    if stream.submit(Work::Record(recording.clone()))?.is_some() {
        *event.last.lock() = Some(recording);
    }
    Ok(())
}

entries! {
    /// Makes an event. Flags: 1 blocks in place of polling (no difference here), 2 keeps no time.
    fn cuEventCreate(to: *mut usize, flags: u32) {
        let context = current()?;
        if flags & !7 != 0 || flags & (INTERPROCESS | DISABLE_TIMING) == INTERPROCESS {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        if flags & INTERPROCESS != 0 {
            return Err(CUDA_ERROR_NOT_SUPPORTED);
        }
        let event = Event { context, timing: flags & DISABLE_TIMING == 0, last: Mutex::new(None) };
        let handle = EVENTS.adopt(Arc::new(event));
        // SAFETY: the caller's promise.
        unsafe { give(to, handle) }
    }

    /// Ends an event; what waits for it goes on waiting until it happens.
    fn cuEventDestroy_v2(event: usize) {
        EVENTS.remove(event).map(|_| ())
    }

    /// The event happens when the stream has done what it was given so far.
    fn cuEventRecord(event: usize, stream: usize) {
        record(&*EVENTS.get(event)?, &stream_of(stream)?)
    }

    /// The same; the flag for events outside a graph changes nothing here.
    fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: u32) {
        record(&*EVENTS.get(event)?, &stream_of(stream)?)
    }

    /// `CUDA_SUCCESS` if the event has happened or was never recorded, else `CUDA_ERROR_NOT_READY`.
    fn cuEventQuery(event: usize) {
        let event = EVENTS.get(event)?;
        event.context.check()?;
        match &*event.last.lock() {
            Some(recording) if recording.time().is_none() => Err(CUDA_ERROR_NOT_READY),
            _ => Ok(()),
        }
    }

    /// Waits until the event has happened.
    fn cuEventSynchronize(event: usize) {
        let event = EVENTS.get(event)?;
        let last = event.last.lock().clone();
        if let Some(recording) = last {
            recording.wait();
        }
        event.context.check()
    }

    /// Milliseconds between two events that have happened.
    fn cuEventElapsedTime(to: *mut f32, start: usize, end: usize) {
        let (start, end) = (EVENTS.get(start)?, EVENTS.get(end)?);
        let times = [&start, &end].map(|event| event.last.lock().clone().filter(|_| event.timing));
        let [Some(start), Some(end)] = times else { return Err(CUDA_ERROR_INVALID_HANDLE) };
        let (Some(start), Some(end)) = (start.time(), end.time()) else { return Err(CUDA_ERROR_NOT_READY) };
        let forwards = end.saturating_duration_since(start).as_secs_f64();
        let milliseconds = (forwards - start.saturating_duration_since(end).as_secs_f64()) * 1000.0;
        // SAFETY: the caller's promise.
        unsafe { give(to, milliseconds as f32) }
    }

    /// The stream does nothing more until the event, as recorded last before this call, has happened.
    fn cuStreamWaitEvent(stream: usize, event: usize, _flags: u32) {
        let (stream, event) = (stream_of(stream)?, EVENTS.get(event)?);
        let last = event.last.lock().clone();
        let work = match last {
            Some(recording) if !SWITCHES.drops(Droppable::Event) => Work::Await(recording),
            _ => Work::Nothing,
        };
        stream.submit(work).map(|_| ())
    }
}
