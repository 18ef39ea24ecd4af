//! Copies, through the caches or around them.

/// Copies `bytes` bytes.
///
/// With `non_temporal`, the stores bypass the caches: for a destination that is larger than they are and that nobody
/// reads soon, as it spares fetching each line of it from memory before overwriting it. Such stores are weakly ordered
/// on x86; they are fenced here, so a release store or a flag written after this call publishes them as usual. On
/// processors without such stores it is an ordinary copy.
///
/// # Safety
/// `src` is readable and `dst` is writable for `bytes` bytes, at any alignment, and they do not overlap.
#[inline]
pub unsafe fn copy(dst: *mut u8, src: *const u8, bytes: usize, non_temporal: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        if non_temporal {
            stream(dst, src, bytes);
            fence();
        } else {
            std::ptr::copy_nonoverlapping(src, dst, bytes);
        }
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Stores whole cache lines around the caches, and the ragged ends through them. A [`fence`] has to follow.
///
/// SSE2's 16-byte stores are enough, and every x86-64 processor has them: what counts is that the four of a line follow
/// each other, as the processor gathers them into one burst.
///
/// # Safety
/// As for [`copy`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn stream(dst: *mut u8, src: *const u8, bytes: usize) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_stream_si128};

    let head = dst.align_offset(LINE).min(bytes);
    let lines = (bytes - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: head <= tail <= bytes, so all is in bounds; past `head`, `dst` is aligned to a line if there is one.
    unsafe {
        std::ptr::copy_nonoverlapping(src, dst, head);
        for line in 0..lines {
            let (from, to) = (src.add(head + line * LINE), dst.add(head + line * LINE));
            let [a, b, c, d] = [0, 16, 32, 48].map(|offset| _mm_loadu_si128(from.add(offset).cast()));
            _mm_stream_si128(to.cast(), a);
            _mm_stream_si128(to.add(16).cast(), b);
            _mm_stream_si128(to.add(32).cast(), c);
            _mm_stream_si128(to.add(48).cast(), d);
        }
        std::ptr::copy_nonoverlapping(src.add(tail), dst.add(tail), bytes - tail);
    }
}

/// Orders the stores of [`stream`] before all later ones.
#[cfg(target_arch = "x86_64")]
pub(super) fn fence() {
    // SAFETY: every x86-64 processor has SSE.
    unsafe { std::arch::x86_64::_mm_sfence() }
}

/// An ordinary copy.
///
/// # Safety
/// As for [`copy`].
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn stream(dst: *mut u8, src: *const u8, bytes: usize) {
    // SAFETY: the caller's contract.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, bytes) }
}

/// Nothing to order.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn fence() {}
