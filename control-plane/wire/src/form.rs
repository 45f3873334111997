//! A form body or query string as a bounded tree.

use std::collections::{BTreeMap, btree_map::Entry};

use percent_encoding::percent_decode;

use super::{WireError, join, quoted};

/// The longest form, in bytes. RunInstances with its 16 KiB of user data, in
/// base64 and percent-encoded, needs 66 KB; EC2's own limit is 1 MiB.
pub const MAX_BYTES: usize = 1 << 20;
/// The most fields: a DescribeInstances with 1000 ids and 200 filter values fits.
const MAX_FIELDS: usize = 8192;
/// The longest name of a field, in bytes.
const MAX_NAME: usize = 512;
/// The deepest nesting. The model's deepest request has fewer parts than this.
/// It also bounds the recursion of everything that walks a tree.
const MAX_DEPTH: usize = 16;

/// One name's value, or what lies below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub(super) value: Option<String>,
    pub(super) children: BTreeMap<String, Node>,
}

/// The fields of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Form {
    pub(super) root: Node,
}

impl Form {
    /// Reads an `application/x-www-form-urlencoded` text.
    ///
    /// # Errors
    /// When it is too big, too deep, not UTF-8, or names one field twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_BYTES {
            return Err(WireError::Malformed(format!(
                "the request is longer than {MAX_BYTES} bytes"
            )));
        }
        let fields = bytes.split(|b| *b == b'&').filter(|f| !f.is_empty());
        Self::from_pairs(fields.map(|field| {
            let mut halves = field.splitn(2, |b| *b == b'=');
            let mut decoded = || decode(halves.next().unwrap_or_default());
            (decoded(), decoded())
        }))
    }

    /// Builds a form of names and values that are decoded already.
    ///
    /// # Errors
    /// As [`parse`](Self::parse)'s.
    pub fn from_pairs(pairs: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Self, WireError> {
        let mut form = Self::default();
        for (count, (name, value)) in pairs.enumerate() {
            if count == MAX_FIELDS {
                return Err(WireError::Malformed(format!(
                    "the request has more than {MAX_FIELDS} parameters"
                )));
            }
            form.insert(&utf8(name)?, utf8(value)?)?;
        }
        Ok(form)
    }

    /// Adds one field.
    ///
    /// # Errors
    /// When the name is empty, too long, too deep or there already.
    pub fn insert(&mut self, name: &str, value: String) -> Result<(), WireError> {
        let invalid = |why: &str| WireError::Invalid {
            name: quoted(name),
            why: why.to_owned(),
        };
        if name.len() > MAX_NAME {
            return Err(invalid("its name is too long"));
        }
        let mut node = &mut self.root;
        for (depth, part) in name.split('.').enumerate() {
            if part.is_empty() {
                return Err(invalid("a part of its name is empty"));
            }
            if depth == MAX_DEPTH {
                return Err(invalid("it is nested too deeply"));
            }
            node = node.children.entry(part.to_owned()).or_default();
        }
        if node.value.replace(value).is_some() {
            return Err(invalid("it is given more than once"));
        }
        Ok(())
    }

    /// Takes a top-level parameter out, with everything below it.
    ///
    /// # Errors
    /// When it is no plain value.
    pub fn take(&mut self, name: &str) -> Result<Option<String>, WireError> {
        let Entry::Occupied(entry) = self.root.children.entry(name.to_owned()) else {
            return Ok(None);
        };
        let node = entry.remove();
        match node.children.keys().next() {
            Some(child) => Err(WireError::Unknown(quoted(&join(name, child)))),
            None => Ok(node.value),
        }
    }

    /// Drops the top-level parameters that `unwanted` picks.
    pub fn remove_if(&mut self, unwanted: impl Fn(&str) -> bool) {
        self.root.children.retain(|name, _| !unwanted(name));
    }

    /// The first parameter whose dotted name without its indices is, or lies
    /// below, one of `names`; in the caller's own spelling.
    pub fn find_any(&self, names: &[&str]) -> Option<String> {
        if names.is_empty() {
            return None;
        }
        find(&self.root, "", "", names)
    }

    /// Takes out every parameter that says what holds anyway: one of `no_ops`,
    /// pairs of a dotted name without indices and a value, in any case.
    pub fn drop_no_ops(&mut self, no_ops: &[(&str, &str)]) {
        if !no_ops.is_empty() {
            drop_no_ops(&mut self.root, "", no_ops);
        }
    }

    /// Every field in order of its name, for a fingerprint of the request.
    pub fn fields(&self) -> Vec<(String, &str)> {
        let mut fields = Vec::new();
        collect(&self.root, "", &mut fields);
        fields
    }
}

fn collect<'a>(node: &'a Node, path: &str, fields: &mut Vec<(String, &'a str)>) {
    if let Some(value) = &node.value {
        fields.push((path.to_owned(), value));
    }
    for (name, child) in &node.children {
        collect(child, &join(path, name), fields);
    }
}

fn find(node: &Node, path: &str, plain: &str, names: &[&str]) -> Option<String> {
    node.children.iter().find_map(|(name, child)| {
        let path = join(path, name);
        let index = name.bytes().all(|b| b.is_ascii_digit()) || name == "member";
        if index {
            return find(child, &path, plain, names);
        }
        let plain = join(plain, name);
        if names.contains(&plain.as_str()) {
            return Some(quoted(&path));
        }
        find(child, &path, &plain, names)
    })
}

fn drop_no_ops(node: &mut Node, plain: &str, no_ops: &[(&str, &str)]) {
    node.children.retain(|name, child| {
        let index = name.bytes().all(|b| b.is_ascii_digit()) || name == "member";
        let plain = if index {
            plain.to_owned()
        } else {
            join(plain, name)
        };
        drop_no_ops(child, &plain, no_ops);
        if !child.children.is_empty() {
            return true;
        }
        match &child.value {
            // A structure of nothing but such parameters goes with them; an
            // index doesn't, for the list's others would no longer be counted.
            None => index,
            Some(value) => !no_ops
                .iter()
                .any(|(name, no_op)| *name == plain && value.eq_ignore_ascii_case(no_op)),
        }
    });
}

/// Undoes the encoding of a form: `+` is a space.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = bytes
        .iter()
        .map(|b| if *b == b'+' { b' ' } else { *b })
        .collect();
    percent_decode(&spaced).collect()
}

fn utf8(bytes: Vec<u8>) -> Result<String, WireError> {
    String::from_utf8(bytes).map_err(|_| {
        WireError::Malformed("the request is not UTF-8 once its percent-encoding is undone".into())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_field_given_twice_is_refused() {
        let error = Form::parse(b"A=1&A=2").unwrap_err();
        assert_eq!(
            error.to_string(),
            "Invalid value for the parameter A: it is given more than once"
        );
    }

    #[test]
    fn depth_count_and_size_are_bounded() {
        let deep = vec!["a"; MAX_DEPTH + 1].join(".");
        assert!(Form::parse(deep.as_bytes()).is_err());
        let many: Vec<String> = (0..=MAX_FIELDS).map(|i| format!("a{i}=")).collect();
        assert!(Form::parse(many.join("&").as_bytes()).is_err());
        assert!(Form::parse(&vec![b'a'; MAX_BYTES + 1]).is_err());
        assert!(Form::parse(&[b'a'; MAX_NAME + 1]).is_err());
        assert!(Form::parse(b"a..b=1").is_err());
        assert!(Form::parse(b"=1").is_err());
    }

    #[test]
    fn what_is_as_long_as_may_be_is_read() {
        let value_of = |length| [b"A=".to_vec(), vec![b'x'; length]].concat();
        let form = Form::parse(&value_of(MAX_BYTES - 2)).unwrap();
        assert_eq!(form.fields()[0].1.len(), MAX_BYTES - 2);
        for longer in [MAX_BYTES - 1, MAX_BYTES] {
            assert_eq!(
                Form::parse(&value_of(longer)),
                Err(WireError::Malformed(
                    "the request is longer than 1048576 bytes".into()
                ))
            );
        }
        assert!(Form::parse(&[b'a'; MAX_NAME]).is_ok());
    }

    #[test]
    fn parameters_that_are_not_wanted_are_dropped_with_all_below() {
        let mut form = Form::parse(b"Action=x&X-Amz-Date.1=y&A.X-Amz-Date=z").unwrap();
        form.remove_if(|name| name.starts_with("X-Amz-"));
        let names: Vec<String> = form.fields().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["A.X-Amz-Date", "Action"]);
    }

    #[test]
    fn text_is_decoded_and_must_be_utf8() {
        let mut form = Form::parse(b"A=x+y%20%C3%A9%zz").unwrap();
        assert_eq!(form.take("A").unwrap().as_deref(), Some("x y é%zz"));
        assert!(Form::parse(b"A=%ff").is_err());
    }

    #[test]
    fn names_are_found_whatever_their_indices() {
        let form = Form::parse(b"N.1.Ipv6.2=x&B=1").unwrap();
        assert_eq!(form.find_any(&["N.Ipv6"]).as_deref(), Some("N.1.Ipv6"));
        assert_eq!(form.find_any(&["Ipv6", "N.B"]), None);
    }

    #[test]
    fn what_holds_anyway_is_taken_out() {
        let no_ops = [("A.B", "false"), ("P", ""), ("N.C", "0")];
        let left = |text: &str| {
            let mut form = Form::parse(text.as_bytes()).unwrap();
            form.drop_no_ops(&no_ops);
            let fields = form.fields();
            let fields = fields.iter().map(|(name, value)| format!("{name}={value}"));
            fields.collect::<Vec<_>>().join("&")
        };
        for (given, expected) in [
            ("A.B=False", ""),
            ("A.B=true", "A.B=true"),
            ("A.B=false&A.D=1", "A.D=1"),
            ("P=&Q=", "Q="),
            ("P=x", "P=x"),
            ("N.1.C=0&N.1.E=1&N.2.C=1", "N.1.E=1&N.2.C=1"),
            ("B=false", "B=false"),
        ] {
            assert_eq!(left(given), expected, "{given}");
        }
        // A structure of nothing else isn't there at all any more, an element still is.
        let mut form = Form::parse(b"A.B=false&P=").unwrap();
        form.drop_no_ops(&no_ops);
        assert_eq!(form, Form::default());
        let mut form = Form::parse(b"N.1.C=0").unwrap();
        form.drop_no_ops(&no_ops);
        assert_ne!(form, Form::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Form::parse(&bytes);
        }
    }
}
