//! An index that its kind doesn't list finds nothing: each that there is is listed.

use std::{fs, path::Path};

#[test]
fn every_index_is_listed_by_its_kind() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for file in fs::read_dir(src).expect("the sources") {
        let path = file.expect("a source").path();
        if path.is_dir() {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let listed: Vec<&str> = text
            .split("indexes: [")
            .skip(1)
            .chain(text.split("refers: [").skip(1))
            .filter_map(|rest| rest.split(']').next())
            .flat_map(|list| list.split(',').map(str::trim))
            .filter_map(|entry| entry.split(" =>").next())
            .collect();
        let declared = text.split("pub const ").skip(1);
        let declared = declared.filter_map(|rest| rest.split_once(": Index<Self>"));
        for (name, _) in declared.filter(|(name, _)| !name.contains(' ')) {
            seen += 1;
            assert!(
                listed.contains(&name),
                "{}: {name} stands in no `indexes:` and no `refers:`",
                path.display()
            );
        }
    }
    assert!(seen > 10, "the search finds the indexes no more: {seen}");
}
