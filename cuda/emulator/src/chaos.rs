//! The switch `CHAOS`: streams that are late, in turns, in ways that a seed fixes.
//!
//! Between two commands CUDA promises nothing about time, so a test that passes with one speed of every stream has not
//! shown much. Each stream draws its own *mood*: for some commands it runs at full speed, for some every one of them
//! comes late, and now and then one comes very late. Other streams draw differently, so in the course of a test each is
//! overtaken by each.

use crate::switches::SWITCHES;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A stream's inclination to be late.
pub struct Mood {
    state: u64,
    seed: u64,
    number: u64,
    /// Commands for which it stays as it is.
    commands_left: u64,
    starved: bool,
}

impl Mood {
    /// The mood of a stream, by its number.
    pub fn of_stream(number: u64) -> Mood {
        Mood { state: 1, seed: 0, number, commands_left: 0, starved: false }
    }

    /// A number below `below`; `None` while the switch is off.
    fn draw(&mut self, below: u64) -> Option<u64> {
        let seed = SWITCHES.chaos.load(Relaxed);
        if seed == 0 {
            return None;
        }
        if seed != self.seed {
            self.seed = seed;
            self.state =
                (seed ^ self.number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD134_2543_DE82_EF95) | 1;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        Some((self.state >> 16) % below)
    }

    /// Sleeps as long as the mood says.
    pub fn before_command(&mut self) {
        if self.commands_left == 0 {
            let Some(kind) = self.draw(3) else { return };
            self.starved = kind == 0;
            self.commands_left = 1 + self.draw(24).unwrap_or(0);
        }
        self.commands_left -= 1;
        let late = if self.starved { self.draw(400) } else { self.draw(8).map(|one| if one == 0 { 60 } else { 0 }) };
        let very_late = self.draw(100).is_some_and(|one| one == 0);
        let microseconds = late.unwrap_or(0) + if very_late { 2000 } else { 0 };
        if microseconds > 0 {
            std::thread::sleep(Duration::from_micros(microseconds));
        }
    }

    /// Whether a command that may overtake the one before it does so.
    pub fn swaps(&mut self) -> bool {
        self.draw(2) == Some(0)
    }
}
