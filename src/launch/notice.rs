//! What rank 0 leaves on a [board](super::Board) for the others.

use super::LONGEST_NOTICE;
use crate::error::Result;
use crate::node::UniqueId;

/// Opens a notice that holds no id; ids begin with another byte in its last place.
const UNABLE: &[u8; 8] = b"maypole\0";

/// See the [module](self).
#[derive(Debug, PartialEq)]
pub(crate) enum Notice {
    /// Where the ranks meet.
    Meet(UniqueId),
    /// Why they do not: rank 0 could make no meeting point, or waited there in vain.
    Unable(String),
}

impl Notice {
    /// As bytes, at most so many as a board takes. A reason is cut to fit.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Notice::Meet(id) => id.as_bytes().to_vec(),
            Notice::Unable(why) => {
                let end = (0..=LONGEST_NOTICE / 4).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
                [UNABLE, &why.as_bytes()[..end]].concat()
            }
        }
    }

    /// From bytes that rank 0 posted.
    ///
    /// # Errors
    /// [`Bootstrap`](crate::Error::Bootstrap) if they are none: see [`UniqueId::from_bytes`].
    pub fn read(bytes: &[u8]) -> Result<Notice> {
        match bytes.strip_prefix(UNABLE) {
            Some(why) => Ok(Notice::Unable(String::from_utf8_lossy(why).into_owned())),
            None => UniqueId::from_bytes(bytes).map(Notice::Meet),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn notices_survive_the_way() {
        let id = UniqueId::create(&Config::default()).unwrap();
        for notice in [Notice::Meet(id), Notice::Unable(String::new()), Notice::Unable("no port".into())] {
            assert_eq!(Notice::read(&notice.bytes()).unwrap(), notice);
        }
        id.withdraw();
        let Notice::Unable(cut) = Notice::read(&Notice::Unable("\u{e9}".repeat(LONGEST_NOTICE)).bytes()).unwrap()
        else {
            panic!("it is no id");
        };
        assert!(!cut.is_empty() && cut.chars().all(|c| c == '\u{e9}'), "{cut}");
        assert!(matches!(Notice::read(b"maypole"), Err(crate::Error::Bootstrap { .. })));
    }
}
