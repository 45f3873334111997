//! A table of nftables as data: rendered whole, or as the difference from what
//! was there before. `nft -f -` applies either as one transaction.
//!
//! Names that stand in here come from [`names`](super::super::names) and from
//! ids, never from a user's text, so that nothing needs escaping.
//!
//! nft(8), <https://wiki.nftables.org/wiki-nftables/index.php/Scripting>

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// One `inet` table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Sets by name.
    pub sets: BTreeMap<String, Set>,
    /// Maps by name, verdict maps among them.
    pub maps: BTreeMap<String, Map>,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its type, as `ifname . ether_addr . ipv4_addr`.
    pub kind: &'static str,
    /// What else it is declared with, as `size 4096; flags dynamic,timeout;`.
    pub options: &'static str,
    /// Its elements; none of a dynamic set, which packets fill.
    pub elements: BTreeSet<String>,
}

impl Set {
    fn declaration(&self) -> String {
        format!("type {}; {}", self.kind, self.options)
    }
}

/// A map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Its type, as `ifname : verdict`.
    pub kind: &'static str,
    /// Its elements.
    pub elements: BTreeMap<String, String>,
}

/// A chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The hook of a base chain, as `type filter hook forward priority 0; policy drop;`.
    pub hook: Option<&'static str>,
    /// Its rules, in order.
    pub rules: Vec<String>,
}

/// The script that makes `table` be there, whatever was there before under its
/// name. Connections go on: their state is not in the table.
pub fn replace(name: &str, table: &Table) -> String {
    let mut out = format!("table inet {name}\ndelete table inet {name}\n");
    // Writing to a String doesn't fail; the results are let go for that reason.
    let _ = writeln!(out, "table inet {name} {{");
    for (name, set) in &table.sets {
        let declaration = set.declaration();
        let _ = writeln!(out, "\tset {name} {{\n\t\t{}", declaration.trim_end());
        write_elements(&mut out, set.elements.iter().cloned());
        out.push_str("\t}\n");
    }
    // Chains first, empty, so that a verdict map may name them.
    for (chain, _) in table.chains.iter().filter(|(_, c)| c.hook.is_none()) {
        let _ = writeln!(out, "\tchain {chain} {{\n\t}}");
    }
    for (map, Map { kind, elements }) in &table.maps {
        let _ = writeln!(out, "\tmap {map} {{\n\t\ttype {kind}");
        write_elements(&mut out, elements.iter().map(pair));
        out.push_str("\t}\n");
    }
    for (chain, Chain { hook, rules }) in &table.chains {
        let _ = writeln!(out, "\tchain {chain} {{");
        for line in hook.iter().copied().chain(rules.iter().map(String::as_str)) {
            let _ = writeln!(out, "\t\t{line}");
        }
        out.push_str("\t}\n");
    }
    out.push_str("}\n");
    out
}

fn pair((key, value): (&String, &String)) -> String {
    format!("{key} : {value}")
}

fn write_elements(out: &mut String, elements: impl Iterator<Item = String>) {
    let list: Vec<String> = elements.collect();
    if !list.is_empty() {
        let _ = writeln!(out, "\t\telements = {{ {} }}", list.join(", "));
    }
}

/// The script that turns `old` into `new`; empty when they are the same.
///
/// The base chains, and the types of sets and maps, are the program's and the
/// same in both; where they are not, the whole table is replaced.
pub fn difference(name: &str, old: &Table, new: &Table) -> String {
    if !same_shape(old, new) {
        return replace(name, new);
    }
    let mut out = String::new();
    for chain in new.chains.keys().filter(|c| !old.chains.contains_key(*c)) {
        let _ = writeln!(out, "add chain inet {name} {chain}");
    }
    for (set, declared) in &new.sets {
        if !old.sets.contains_key(set) {
            let declaration = declared.declaration();
            let _ = writeln!(out, "add set inet {name} {set} {{ {declaration} }}");
        }
    }
    for (set, Set { elements, .. }) in &new.sets {
        let before = old.sets.get(set).map(|s| &s.elements);
        let gone = before
            .into_iter()
            .flatten()
            .filter(|e| !elements.contains(*e));
        element_lines(&mut out, "delete", name, set, gone.cloned());
        let fresh = elements
            .iter()
            .filter(|e| before.is_none_or(|b| !b.contains(*e)));
        element_lines(&mut out, "add", name, set, fresh.cloned());
    }
    // A map lets go of a chain before the chain goes, and of a key before the
    // key gets another value.
    for (map, Map { elements, .. }) in &old.maps {
        let now = new.maps.get(map).map(|m| &m.elements);
        let gone = elements
            .iter()
            .filter(|(k, v)| now.and_then(|n| n.get(*k)) != Some(*v));
        element_lines(&mut out, "delete", name, map, gone.map(pair));
    }
    for (chain, Chain { rules, .. }) in &new.chains {
        let before = old.chains.get(chain);
        if before.is_some_and(|b| b.rules == *rules) {
            continue;
        }
        if before.is_some() {
            let _ = writeln!(out, "flush chain inet {name} {chain}");
        }
        for rule in rules {
            let _ = writeln!(out, "add rule inet {name} {chain} {rule}");
        }
    }
    for (map, Map { elements, .. }) in &new.maps {
        let before = old.maps.get(map).map(|m| &m.elements);
        let fresh = elements
            .iter()
            .filter(|(k, v)| before.and_then(|b| b.get(*k)) != Some(*v));
        element_lines(&mut out, "add", name, map, fresh.map(pair));
    }
    // Chains refer to chains: all are emptied before the first is deleted.
    let gone: Vec<&String> = old
        .chains
        .keys()
        .filter(|c| !new.chains.contains_key(*c))
        .collect();
    for chain in &gone {
        let _ = writeln!(out, "flush chain inet {name} {chain}");
    }
    for chain in &gone {
        let _ = writeln!(out, "delete chain inet {name} {chain}");
    }
    for set in old.sets.keys().filter(|s| !new.sets.contains_key(*s)) {
        let _ = writeln!(out, "delete set inet {name} {set}");
    }
    out
}

fn same_shape(old: &Table, new: &Table) -> bool {
    let hooks = |t: &Table| -> Vec<(String, &'static str)> {
        t.chains
            .iter()
            .filter_map(|(n, c)| Some((n.clone(), c.hook?)))
            .collect()
    };
    let maps = |t: &Table| -> Vec<(String, &'static str)> {
        t.maps.iter().map(|(n, m)| (n.clone(), m.kind)).collect()
    };
    let sets = |(n, s): (&String, &Set)| {
        let same = |o: &Set| o.kind == s.kind && o.options == s.options;
        new.sets.get(n).is_none_or(same)
    };
    hooks(old) == hooks(new) && maps(old) == maps(new) && old.sets.iter().all(sets)
}

fn element_lines(
    out: &mut String,
    verb: &str,
    table: &str,
    set: &str,
    elements: impl Iterator<Item = String>,
) {
    let list: Vec<String> = elements.collect();
    if !list.is_empty() {
        let list = list.join(", ");
        let _ = writeln!(out, "{verb} element inet {table} {set} {{ {list} }}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(chains: &[(&str, &[&str])], jumps: &[(&str, &str)], members: &[&str]) -> Table {
        let mut t = Table::default();
        t.chains.insert(
            "base".into(),
            Chain {
                hook: Some("type filter hook forward priority 0; policy drop;"),
                rules: vec!["oifname vmap @jumps".into()],
            },
        );
        for (name, rules) in chains {
            let rules = rules.iter().map(|r| (*r).to_owned()).collect();
            t.chains.insert((*name).into(), Chain { hook: None, rules });
        }
        let elements = jumps
            .iter()
            .map(|(k, v)| (format!("\"{k}\""), format!("jump {v}")))
            .collect();
        let kind = "ifname : verdict";
        t.maps.insert("jumps".into(), Map { kind, elements });
        if !members.is_empty() {
            let elements = members.iter().map(|m| (*m).to_owned()).collect();
            let (kind, options) = ("ipv4_addr", "");
            let set = Set {
                kind,
                options,
                elements,
            };
            t.sets.insert("members".into(), set);
        }
        t
    }

    #[test]
    fn nothing_changed_is_nothing_to_do() {
        let t = table(&[("a", &["accept"])], &[("t1", "a")], &["10.0.0.1"]);
        assert_eq!(difference("x", &t, &t), "");
    }

    #[test]
    fn what_is_referred_to_comes_first_and_goes_last() {
        let old = table(
            &[("a", &["accept"]), ("b", &["jump a"])],
            &[("t1", "b")],
            &["10.0.0.1"],
        );
        let new = table(
            &[("c", &["ip saddr 10.0.0.1 accept"])],
            &[("t1", "c"), ("t2", "c")],
            &["10.0.0.2"],
        );
        assert_eq!(
            difference("x", &old, &new),
            "add chain inet x c\n\
             delete element inet x members { 10.0.0.1 }\n\
             add element inet x members { 10.0.0.2 }\n\
             delete element inet x jumps { \"t1\" : jump b }\n\
             add rule inet x c ip saddr 10.0.0.1 accept\n\
             add element inet x jumps { \"t1\" : jump c, \"t2\" : jump c }\n\
             flush chain inet x a\n\
             flush chain inet x b\n\
             delete chain inet x a\n\
             delete chain inet x b\n"
        );
    }

    #[test]
    fn another_shape_is_a_whole_table() {
        let old = Table::default();
        let new = table(&[], &[], &[]);
        let is_whole = |old: &Table, new: &Table| {
            let script = difference("x", old, new);
            let whole = script == replace("x", new);
            assert_eq!(
                whole,
                script.starts_with("table inet x\ndelete table inet x\n")
            );
            whole
        };
        assert!(is_whole(&old, &new));

        // A hook, a map or what a set is declared with, each alone.
        let old = table(&[], &[("t1", "a")], &["10.0.0.1"]);
        let changed = |change: fn(&mut Table)| {
            let mut new = old.clone();
            change(&mut new);
            is_whole(&old, &new)
        };
        let hook = |table: &mut Table| {
            let base = table.chains.get_mut("base").unwrap();
            base.hook = Some("type filter hook input priority 0; policy drop;");
        };
        let another_map = |table: &mut Table| {
            let map = table.maps["jumps"].clone();
            table.maps.insert("more".into(), map);
        };
        let map_kind = |table: &mut Table| {
            table.maps.get_mut("jumps").unwrap().kind = "ipv4_addr : verdict";
        };
        let set_kind = |table: &mut Table| {
            table.sets.get_mut("members").unwrap().kind = "ifname";
        };
        let set_options = |table: &mut Table| {
            table.sets.get_mut("members").unwrap().options = "flags timeout;";
        };
        for change in [hook, another_map, map_kind, set_kind, set_options] {
            assert!(changed(change));
        }
        assert!(!changed(|table| table.sets.clear()));
    }
}
