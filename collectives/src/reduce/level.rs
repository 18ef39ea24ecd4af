//! Which vector instructions the kernels use: found out once, at run time.

use std::sync::atomic::{AtomicU8, Ordering};

/// A set of instructions that every kernel is compiled for. Results do not depend on it, speed does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What the target guarantees: SSE2 on x86-64, NEON on aarch64.
    Portable = 1,
    /// AVX2 and F16C (x86-64 processors since 2013).
    Avx2 = 2,
    /// AVX-512 F, BW, DQ and VL, beside AVX2 and F16C.
    Avx512 = 3,
}

impl Level {
    /// Every level, slowest first.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// The name used in messages and on command lines: `portable`, `avx2`, `avx512`.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Whether this processor, under this operating system, has the level's instructions.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
            match self {
                Level::Portable => true,
                Level::Avx2 => avx2(),
                Level::Avx512 => {
                    avx2()
                        && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Level::Portable
        }
    }

    /// The best supported level that is not above `self`.
    fn or_below(self) -> Level {
        Level::ALL.into_iter().rev().find(|&l| l <= self && l.is_supported()).unwrap_or(Level::Portable)
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The level in use, or 0 before anybody asked or decided.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level in use: the best that is supported, unless [`force_level`] said otherwise.
#[inline]
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => detect(),
    }
}

/// Takes the best level, unless another thread has decided in the meantime.
#[cold]
fn detect() -> Level {
    let _ = LEVEL.compare_exchange(0, Level::Avx512.or_below() as u8, Ordering::Relaxed, Ordering::Relaxed);
    level()
}

/// Makes the whole process use `wanted`, or the best supported level below it, and returns what is used from now on.
pub fn force_level(wanted: Level) -> Level {
    let level = wanted.or_below();
    LEVEL.store(level as u8, Ordering::Relaxed);
    level
}
