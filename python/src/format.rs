//! Formats of Python's `struct`, with which buffers say what their elements are (PEP 3118).

use maypole::DataType;

use crate::array::Kind;

/// The element type of a format, whose elements have `size` bytes.
///
/// # Errors
/// What is wrong with it, to be put behind the argument's name.
pub fn kind(format: &[u8], size: usize) -> Result<Kind, String> {
    use DataType::*;
    let shown = || format!("format {:?}", String::from_utf8_lossy(format));
    let letters = match format {
        [b'@' | b'=' | b'<', rest @ ..] => rest,
        other => other,
    };
    Ok(match (letters, size) {
        (b"b", 1) => Kind::Number(I8),
        (b"B", 1) => Kind::Number(U8),
        (b"i" | b"l" | b"q" | b"n", 4) => Kind::Number(I32),
        (b"I" | b"L" | b"Q" | b"N", 4) => Kind::Number(U32),
        (b"i" | b"l" | b"q" | b"n", 8) => Kind::Number(I64),
        (b"I" | b"L" | b"Q" | b"N", 8) => Kind::Number(U64),
        (b"e", 2) => Kind::Number(F16),
        (b"f", 4) => Kind::Number(F32),
        (b"d", 8) => Kind::Number(F64),
        (b"?", 1) => Kind::Bool,
        (b"Zf", 8) => Kind::Complex(F32),
        (b"Zd", 16) => Kind::Complex(F64),
        _ => match reference(format) {
            None => Kind::Other(size, shown()),
            Some(reference) => return Err(reference.refusal(&shown())),
        },
    })
}

/// What must not leave the process.
#[derive(Clone, Copy)]
pub enum Reference {
    Object,
    Pointer,
}

impl Reference {
    /// Why elements that have it are refused, to be put behind the argument's name. `shown`: how they were told.
    pub fn refusal(self, shown: &str) -> String {
        match self {
            Reference::Object => format!(
                "has elements that are Python objects ({shown}), which have no bytes to send; pickle them, and send \
                 what that gives"
            ),
            Reference::Pointer => format!(
                "has elements that are pointers ({shown}), which mean nothing to other ranks; send what they point to"
            ),
        }
    }
}

/// Whether elements of this format have, anywhere in them, what means something in this process
/// only.
fn reference(format: &[u8]) -> Option<Reference> {
    let mut rest = format;
    while let [letter, after @ ..] = rest {
        rest = match (letter, after) {
            // A field's name, which may have any letters, and ends with another colon.
            (b':', _) => after.iter().position(|letter| *letter == b':').map_or(&[][..], |end| &after[end + 1..]),
            // A complex number; alone it is a pointer to text, as ctypes has it.
            (b'Z', [b'e' | b'f' | b'd' | b'g', after @ ..]) => after,
            (b'O', _) => return Some(Reference::Object),
            (b'P' | b'&' | b'X' | b'z' | b'Z', _) => return Some(Reference::Pointer),
            _ => after,
        };
    }
    None
}
