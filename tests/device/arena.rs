//! Device memory for many cases, with host memory to fill and read it by: allocated once, since allocating may stop the
//! device while other ranks' streams wait for this one.

use bytemuck::cast_slice;
use maypole::Element;
use maypole::cuda::{DeviceSlice, DeviceSliceMut, OnStream, Stream};
use maypole_cuda::{DeviceMemory, Pinned};

use crate::world::Rank;

/// Device memory and the same amount of pinned memory, by the same offsets.
pub struct Arena {
    device: DeviceMemory,
    host: Pinned,
}

impl Arena {
    /// All ranks call it: nobody queues anything before all have their memory.
    pub fn new(rank: &Rank, bytes: usize) -> Arena {
        let device = DeviceMemory::new(&rank.context, bytes).expect("device memory");
        let host = Pinned::new(&rank.context, bytes).expect("pinned memory");
        rank.comm.barrier().expect("a barrier on the host");
        Arena { device, host }
    }

    pub fn bytes(&self) -> usize {
        self.device.bytes()
    }

    /// Queue `bytes` to offset `at`. Nothing that was queued with the same bytes before is still on its way.
    pub fn put(&self, stream: &Stream, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.bytes());
        // SAFETY: inside the pinned memory, and nothing that is queued uses the range, as the caller promises.
        unsafe { self.host.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        // SAFETY: arenas outlive what is queued.
        unsafe { self.device.queue_from_host(at, self.host.as_ptr().wrapping_add(at), bytes.len(), stream) }
            .expect("a copy to the device");
    }

    /// Queue setting `bytes` bytes at offset `at` to `value`.
    pub fn fill(&self, stream: &Stream, at: usize, bytes: usize, value: u8) {
        // SAFETY: arenas outlive what is queued.
        unsafe { self.device.queue_fill(at, bytes, value, stream) }.expect("a fill");
    }

    /// Queue the copy of `bytes` bytes at offset `at` to the host.
    pub fn fetch(&self, stream: &Stream, at: usize, bytes: usize) {
        assert!(at + bytes <= self.bytes());
        // SAFETY: arenas outlive what is queued, and the range is inside.
        unsafe { self.device.queue_to_host(at, self.host.as_ptr().wrapping_add(at), bytes, stream) }
            .expect("a copy to the host");
    }

    /// What was fetched. The stream has been waited for.
    pub fn fetched(&self, at: usize, bytes: usize) -> &[u8] {
        assert!(at + bytes <= self.bytes());
        // SAFETY: inside the pinned memory, to which nothing is copied now.
        unsafe { std::slice::from_raw_parts(self.host.as_ptr().add(at), bytes) }
    }

    /// Fetch, wait, and take.
    pub fn read(&self, stream: &Stream, at: usize, bytes: usize) -> Vec<u8> {
        self.fetch(stream, at, bytes);
        stream.synchronize().expect("the stream has no error");
        self.fetched(at, bytes).to_vec()
    }

    /// The bytes as a call's input.
    pub fn input(&self, at: usize, bytes: usize) -> DeviceSlice<'_, u8> {
        assert!(at + bytes <= self.bytes());
        // SAFETY: arenas outlive what is queued.
        unsafe { DeviceSlice::from_raw(self.device.address() + at as u64, bytes) }
    }

    /// The bytes as a call's output, or as its only buffer.
    pub fn output(&self, at: usize, bytes: usize) -> DeviceSliceMut<'_, u8> {
        assert!(at + bytes <= self.bytes());
        // SAFETY: arenas outlive what is queued; cases do not use a range twice at a time.
        unsafe { DeviceSliceMut::from_raw(self.device.address() + at as u64, bytes) }
    }

    /// `len` elements at byte `at` as a call's input.
    pub fn elements<T>(&self, at: usize, len: usize) -> DeviceSlice<'_, T> {
        let address = self.input(at, len * size_of::<T>()).address();
        // SAFETY: as above.
        unsafe { DeviceSlice::from_raw(address, len) }
    }

    /// `len` elements at byte `at` as a call's output.
    pub fn elements_mut<T>(&self, at: usize, len: usize) -> DeviceSliceMut<'_, T> {
        let address = self.output(at, len * size_of::<T>()).address();
        // SAFETY: as above.
        unsafe { DeviceSliceMut::from_raw(address, len) }
    }

    /// Make a call on copies of `input` and `output` in the first and second half of the arena, wait for it, and copy
    /// the output back.
    pub fn run<T: Element>(
        &self,
        rank: &Rank,
        input: &[T],
        output: &mut [T],
        call: impl FnOnce(OnStream<'_>, DeviceSlice<'_, T>, DeviceSliceMut<'_, T>) -> maypole::Result<()>,
    ) -> maypole::Result<()> {
        let half = self.bytes() / 2;
        assert!(size_of_val(input) <= half);
        self.put(&rank.stream, 0, cast_slice(input));
        self.put(&rank.stream, half, cast_slice(output));
        call(rank.comm.on(&rank.stream), self.elements(0, input.len()), self.elements_mut(half, output.len()))?;
        self.take(rank, half, output)
    }

    /// [`Arena::run`] with one buffer.
    pub fn run_in_place<T: Element>(
        &self,
        rank: &Rank,
        buffer: &mut [T],
        call: impl FnOnce(OnStream<'_>, DeviceSliceMut<'_, T>) -> maypole::Result<()>,
    ) -> maypole::Result<()> {
        self.put(&rank.stream, 0, cast_slice(buffer));
        call(rank.comm.on(&rank.stream), self.elements_mut(0, buffer.len()))?;
        self.take(rank, 0, buffer)
    }

    fn take<T: Element>(&self, rank: &Rank, at: usize, into: &mut [T]) -> maypole::Result<()> {
        let bytes = bytemuck::cast_slice_mut(into);
        self.fetch(&rank.stream, at, bytes.len());
        rank.comm.on(&rank.stream).synchronize()?;
        rank.stream.synchronize().expect("the stream has no error");
        bytes.copy_from_slice(self.fetched(at, bytes.len()));
        Ok(())
    }
}
