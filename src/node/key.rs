//! The job's key: what every connection is proved with, and where it comes from.

use zeroize::Zeroize;

use crate::config::Config;

/// 32 secret bytes: the key of a job, or of one connection. It is never shown, and wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub fn new(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// For those who derive from it.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of a world, wherever its ranks meet. `point`: what the meeting point gives every rank, random in a unique
    /// id, little more than the address otherwise. `MAYPOLE_KEY` and `MAYPOLE_RUN` always count, and `earlier`, how many
    /// worlds of the job have met there before: who differs in any of it is another job's.
    pub fn of_world(point: &[u8; 32], earlier: usize, config: &Config) -> Key {
        let secret = config.key.as_ref().map_or("", |key| key.expose());
        let run = config.run.as_deref().unwrap_or_default();
        let mut hasher = blake3::Hasher::new_derive_key("maypole 2026 world key");
        // Each part with its length, so that no two lists of parts are the same bytes.
        for part in [point.as_slice(), secret.as_bytes(), run.as_bytes(), &(earlier as u64).to_le_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Key(*hasher.finalize().as_bytes())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(key: Option<&str>, run: Option<&str>) -> Config {
        Config { key: key.map(Into::into), run: run.map(Into::into), ..Config::default() }
    }

    #[test]
    fn everything_counts() {
        let (one, two) = ("0123456789abcdef", "0123456789abcdeg");
        let keys = [
            Key::of_world(&[0; 32], 0, &config(None, None)),
            Key::of_world(&[1; 32], 0, &config(None, None)),
            Key::of_world(&[0; 32], 1, &config(None, None)),
            Key::of_world(&[0; 32], 0, &config(Some(one), None)),
            Key::of_world(&[0; 32], 0, &config(Some(two), None)),
            Key::of_world(&[0; 32], 0, &config(None, Some(one))),
            Key::of_world(&[0; 32], 0, &config(Some(one), Some("7"))),
            Key::of_world(&[0; 32], 0, &config(Some(&format!("{one}7")), None)),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "{i}");
        }
        assert_eq!(Key::of_world(&[0; 32], 0, &config(Some(one), None)), keys[3]);
        assert!(!format!("{:?}", keys[0]).contains('1'));
    }
}
