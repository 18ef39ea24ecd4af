//! Cuts what a rank prints into lines and puts the rank before each.
//!
//! A line is printed when it is whole, so that lines of several ranks do not mix. Some text cannot wait for a newline: a
//! line that a carriage return ends (a progress bar), one that is longer than [`LONGEST`], and the beginning of a line
//! after which nothing has come for [`PATIENCE`] (a prompt). After these the [`Cursor`] stands within the rank's line. Who
//! prints next, if that is another, ends the line first, and the rank's own next text has its number before it again.

use std::time::{Duration, Instant};

/// A longer line is printed in parts, so that a rank that prints no newlines cannot fill the memory.
const LONGEST: usize = 1 << 20;
/// After so long without more the beginning of a line is printed: soon enough for whoever is to answer a prompt, and
/// late enough for a rank whose line comes in pieces on a busy machine.
const PATIENCE: Duration = Duration::from_millis(250);

/// In whose unfinished line the cursor stands, by the stream's number, where output goes.
#[derive(Default)]
pub(super) struct Cursor(Option<usize>);

impl Cursor {
    /// Have the next text begin on a line of its own.
    pub(super) fn start_line(&mut self, out: &mut Vec<u8>) {
        if self.0.take().is_some() {
            out.push(b'\n');
        }
    }
}

/// One stream of one rank.
pub(super) struct Lines {
    /// The stream's number.
    id: usize,
    prefix: String,
    /// The beginning of a line whose end has not come yet, as far as it has not been printed.
    rest: Vec<u8>,
    /// When the last of it came.
    since: Option<Instant>,
    /// A carriage return came last: a newline after it is its other half.
    returned: bool,
}

impl Lines {
    /// The stream number `id`, of this rank.
    pub(super) fn new(id: usize, rank: usize) -> Lines {
        Lines { id, prefix: format!("[{rank}] "), rest: Vec::new(), since: None, returned: false }
    }

    /// Append to `out` every line that `bytes` completes.
    pub(super) fn add(&mut self, bytes: &[u8], cursor: &mut Cursor, out: &mut Vec<u8>) {
        for part in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            self.rest.extend(part);
            if part.ends_with(b"\n") || part.ends_with(b"\r") || self.rest.len() >= LONGEST {
                self.put(cursor, out);
            }
        }
        self.since = (!self.rest.is_empty()).then(Instant::now);
    }

    /// When what there is of a line is to be printed, if nothing comes until then.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + PATIENCE)
    }

    /// Append the beginning of a line that has waited long enough.
    pub(super) fn show_late(&mut self, now: Instant, cursor: &mut Cursor, out: &mut Vec<u8>) {
        if self.due().is_some_and(|due| due <= now) {
            self.put(cursor, out);
        }
    }

    /// Append what is left, as a line.
    pub(super) fn end(&mut self, cursor: &mut Cursor, out: &mut Vec<u8>) {
        self.put(cursor, out);
        if cursor.0 == Some(self.id) {
            cursor.start_line(out);
        }
    }

    fn put(&mut self, cursor: &mut Cursor, out: &mut Vec<u8>) {
        self.since = None;
        let Some(&last) = self.rest.last() else { return };
        let here = cursor.0 == Some(self.id);
        let at_its_begin = std::mem::replace(&mut self.returned, last == b'\r');
        if at_its_begin && self.rest == b"\n" {
            // Where another has ended the line meanwhile, that was it.
            if here {
                cursor.start_line(out);
            }
            self.rest.clear();
            return;
        }
        if !here {
            cursor.start_line(out);
        }
        if !here || at_its_begin {
            out.extend(self.prefix.as_bytes());
        }
        out.append(&mut self.rest);
        cursor.0 = (last != b'\n').then_some(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What two ranks' pieces come out as; an empty piece is a long pause.
    fn printed(pieces: &[(usize, &str)]) -> String {
        let mut ranks = [Lines::new(0, 0), Lines::new(1, 1)];
        let (mut cursor, mut out) = (Cursor::default(), Vec::new());
        for (rank, text) in pieces {
            match *text {
                "" => ranks[*rank].show_late(Instant::now() + 2 * PATIENCE, &mut cursor, &mut out),
                text => ranks[*rank].add(text.as_bytes(), &mut cursor, &mut out),
            }
        }
        ranks.iter_mut().for_each(|lines| lines.end(&mut cursor, &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_come_whole_whatever_the_reads() {
        let text = b"one\ntwo\n\n\xff\x00three\r\nfour";
        for step in 1..text.len() {
            let (mut lines, mut cursor, mut out) = (Lines::new(0, 12), Cursor::default(), Vec::new());
            for part in text.chunks(step) {
                lines.add(part, &mut cursor, &mut out);
            }
            assert!(!out.ends_with(b"four\n"), "a line without its end must wait");
            lines.end(&mut cursor, &mut out);
            assert_eq!(out, b"[12] one\n[12] two\n[12] \n[12] \xff\x00three\r\n[12] four\n", "in steps of {step}");
            let length = out.len();
            lines.end(&mut cursor, &mut out);
            assert_eq!(out.len(), length, "the end comes once");
        }
        assert_eq!(printed(&[(0, "a"), (1, "b\n"), (0, "a\n")]), "[1] b\n[0] aa\n", "each line stays whole");
    }

    #[test]
    fn a_line_without_end_is_printed_in_parts() {
        let (mut lines, mut cursor, mut out) = (Lines::new(0, 0), Cursor::default(), Vec::new());
        for _ in 0..40 {
            lines.add(&[b'x'; 64 << 10], &mut cursor, &mut out);
        }
        assert_eq!(out.len(), (2 << 20) + "[0] ".len(), "two parts of three");
        assert!(lines.rest.len() < LONGEST);
    }

    #[test]
    fn progress_bars_and_prompts_do_not_wait() {
        let bar = [(0, "10%\r"), (0, "20%\r"), (0, "\n"), (0, "done\n")];
        assert_eq!(printed(&bar), "[0] 10%\r[0] 20%\r\n[0] done\n");
        // The answer is on the same line.
        assert_eq!(printed(&[(0, "go? "), (0, ""), (0, "yes\n")]), "[0] go? yes\n");
    }

    #[test]
    fn whoever_comes_between_ends_the_line_first() {
        assert_eq!(printed(&[(0, "go? "), (0, ""), (1, "one\n"), (0, "yes\n")]), "[0] go? \n[1] one\n[0] yes\n");
        assert_eq!(printed(&[(0, "10%\r"), (1, "one\n"), (0, "20%\r")]), "[0] 10%\r\n[1] one\n[0] 20%\r\n");
        // The newline that belongs to the carriage return has been printed.
        assert_eq!(printed(&[(0, "a\r"), (1, "one\n"), (0, "\nb\n")]), "[0] a\r\n[1] one\n[0] b\n");
        assert_eq!(printed(&[(0, "10%\r"), (1, "5%\r"), (0, "20%\r")]), "[0] 10%\r\n[1] 5%\r\n[0] 20%\r\n");
    }
}
