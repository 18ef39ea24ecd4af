//! As much of PTX as a stand-in needs: versions, and which entries there are with the sizes of their parameters.

/// A PTX module's header and entries.
#[derive(Debug, PartialEq, Eq)]
pub struct Ptx {
    /// Version of the PTX language, as (8, 4).
    pub version: (u64, u64),
    /// Compute capability times ten.
    pub target: u64,
    pub entries: Vec<Entry>,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub parameters: Vec<Parameter>,
}

/// One parameter's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    pub bytes: usize,
    pub alignment: usize,
}

impl Ptx {
    /// The oldest driver that reads this version of the language: PTX 8.4 came with CUDA 12.4, 7.8 with 11.8.
    pub fn needs_driver(&self) -> u64 {
        (self.version.0 + 4) * 1000 + self.version.1 * 10
    }
}

/// Reads a module; `None` if it is not PTX.
pub fn parse(text: &str) -> Option<Ptx> {
    let text: String = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let after = |word: &str| Some(text.split_once(word)?.1.split_whitespace().next()?.to_string());
    let version = after(".version")?;
    let (major, minor) = version.split_once('.')?;
    let target: String = after(".target")?.strip_prefix("sm_")?.chars().take_while(char::is_ascii_digit).collect();
    let mut entries = Vec::new();
    for piece in text.split(".entry").skip(1) {
        let head = piece.split('{').next()?;
        let (name, parameters) = match head.split_once('(') {
            Some((name, rest)) => (name, rest.split(')').next()?),
            None => (head, ""),
        };
        let parameters = parameters.split(',').filter(|one| !one.trim().is_empty());
        let name = name.split_whitespace().next()?.to_string();
        entries.push(Entry { name, parameters: parameters.map(parameter).collect::<Option<_>>()? });
    }
    Some(Ptx { version: (major.parse().ok()?, minor.parse().ok()?), target: target.parse().ok()?, entries })
}

/// Reads `.param .align 8 .b8 name[432]` or `.param .u64 name`.
fn parameter(text: &str) -> Option<Parameter> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let sizes = [(".b8", 1), (".u8", 1), (".s8", 1), (".b16", 2), (".u16", 2), (".s16", 2), (".f16", 2), (".b32", 4)];
    let more = [(".u32", 4), (".s32", 4), (".f32", 4), (".b64", 8), (".u64", 8), (".s64", 8), (".f64", 8)];
    let element = words.iter().find_map(|word| sizes.iter().chain(&more).find(|(name, _)| name == word))?.1;
    let count = match text.split_once('[') {
        Some((_, rest)) => rest.split(']').next()?.trim().parse().ok()?,
        None => 1,
    };
    let aligned = words.iter().position(|word| *word == ".align").and_then(|at| words.get(at + 1)?.parse().ok());
    let pointer = words.contains(&".ptr");
    Some(Parameter { bytes: element * count, alignment: if pointer { element } else { aligned.unwrap_or(element) } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_their_parameters_are_read() {
        let ptx = parse(include_str!("../tests/kernels/probe.ptx")).unwrap();
        assert_eq!((ptx.version, ptx.target, ptx.needs_driver()), ((8, 4), 75, 12040));
        let names: Vec<&str> = ptx.entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["test_add", "test_shape", "test_without_twin"]);
        assert_eq!(ptx.entries[0].parameters, [Parameter { bytes: 32, alignment: 8 }]);
        assert_eq!(
            ptx.entries[2].parameters,
            [Parameter { bytes: 8, alignment: 8 }, Parameter { bytes: 4, alignment: 4 }]
        );
    }

    #[test]
    fn what_is_not_ptx_is_refused() {
        assert_eq!(parse("\u{7f}ELF"), None);
        assert_eq!(parse(".version 8.4\n.target sm_75\n.entry broken(.param .silly x) {"), None);
    }
}
