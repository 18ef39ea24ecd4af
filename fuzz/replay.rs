//! The corpus on an ordinary toolchain: every file of it, through the target that it is for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::input::Target;

/// Run the corpus of each target that a crate lists. `fuzz`: this directory.
///
/// Fails where a target does not hold, where it has no binary or no corpus, and where nothing in its corpus is what it
/// reads any more (after a change of a format): then it would go on to pass and find nothing.
pub(crate) fn replay(targets: &[Target], fuzz: &Path) {
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("the manifest of the fuzz targets");
    for (name, target) in targets {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "target {name} has no [[bin]] in fuzz/Cargo.toml");
        let corpus = fuzz.join("corpus").join(name);
        let files = std::fs::read_dir(&corpus).unwrap_or_else(|e| panic!("no corpus of target {name}: {e}"));
        let files: Vec<_> = files.map(|entry| entry.expect("a file of the corpus").path()).collect();
        assert!(!files.is_empty(), "the corpus of target {name} is empty: {}", corpus.display());
        let mut accepted = 0;
        for file in &files {
            let bytes = std::fs::read(file).expect("a file of the corpus");
            let held = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
            accepted +=
                usize::from(held.unwrap_or_else(|_| panic!("target {name} does not hold for {}", file.display())));
        }
        assert!(accepted > 0, "nothing in the corpus of target {name} is what it reads; see fuzz/README.md");
        println!("{name}: {accepted} of {} accepted", files.len());
    }
}
