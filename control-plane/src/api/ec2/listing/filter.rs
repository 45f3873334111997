//! `Filters`: the values of one filter are alternatives, several filters must
//! all match; `*` is any text and `?` any one character, and a backslash takes
//! their meaning away.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use serde::{Deserialize, Serialize};

use crate::api::{ApiError, wire::quoted};

/// One filter of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Filter {
    /// What of the resource is looked at.
    pub name: String,
    /// What it may be.
    #[serde(default, rename = "Value")]
    pub values: Vec<String>,
}

impl Filter {
    /// Its values, where each of them is one text and no pattern.
    pub fn exact(&self) -> Option<&[String]> {
        let pattern = |value: &String| value.contains(['*', '?', '\\']);
        (!self.values.iter().any(pattern)).then_some(&self.values)
    }
}

/// Takes the values that an item has under a filter's name.
pub struct Values<'a> {
    budget: &'a Budget,
    patterns: &'a [Pattern],
    text: String,
    matched: bool,
}

impl Values<'_> {
    /// One value more; the filter matches when one of them does.
    pub fn add(&mut self, value: impl Display) {
        if self.matched {
            return;
        }
        self.text.clear();
        // Writing to a String doesn't fail.
        let _ = write!(self.text, "{value}");
        self.matched = self
            .patterns
            .iter()
            .any(|p| p.matches(&self.text, self.budget));
    }

    /// Each of these.
    pub fn extend<T: Display>(&mut self, values: impl IntoIterator<Item = T>) {
        values.into_iter().for_each(|value| self.add(value));
    }
}

type Read<T> = fn(&T, &mut Values<'_>);

/// The filters that a kind of item has: each name with how its values are read.
pub struct Table<T>(Vec<(&'static str, Read<T>)>);

impl<T> Table<T> {
    /// None yet.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// One filter more.
    #[must_use]
    pub fn on(mut self, name: &'static str, read: Read<T>) -> Self {
        self.0.push((name, read));
        self
    }

    /// A filter that EC2 has under several names.
    #[must_use]
    pub fn on_each<const N: usize>(mut self, names: [&'static str; N], read: Read<T>) -> Self {
        self.0.extend(names.map(|name| (name, read)));
        self
    }

    fn find(&self, name: &str) -> Option<Read<T>> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, read)| *read)
    }
}

/// Reads an item's tags.
pub type TagsOf<T> = fn(&T) -> &BTreeMap<String, String>;

/// What filters can look at.
pub trait Filterable: Sized {
    /// Its tags, for `tag:…` and `tag-key` beside its own filters: `None` is for what
    /// can have no tags, and then those are no filters of it.
    const TAGS: Option<TagsOf<Self>>;

    /// Its filters.
    fn filters() -> Table<Self>;
}

/// EC2's limit on the values of a request's filters.
const MAX_VALUES: usize = 200;
/// How many characters the wildcards of one request may compare: well under a
/// second of work.
const MAX_COMPARED: usize = 50_000_000;
/// The longest pattern, in bytes: no value that it could match is longer.
const MAX_PATTERN: usize = 1024;

/// The filters of a request, checked.
pub struct Filters<T> {
    checked: Vec<Checked<T>>,
    /// How many more characters may be compared.
    budget: Budget,
}

struct Checked<T> {
    looks_at: LooksAt<T>,
    patterns: Vec<Pattern>,
}

enum LooksAt<T> {
    /// What the kind's own filter reads.
    Own(Read<T>),
    /// The value of the tag with this key.
    Tag(TagsOf<T>, String),
    /// The keys of all tags.
    TagKeys(TagsOf<T>),
}

impl<T: Filterable> Filters<T> {
    /// Checks that `T` has every filter that is asked for.
    ///
    /// # Errors
    /// `InvalidParameterValue` for a filter that it hasn't.
    pub fn new(filters: Vec<Filter>) -> Result<Self, ApiError> {
        if filters.iter().map(|f| f.values.len()).sum::<usize>() > MAX_VALUES {
            return Err(ApiError::new(
                "FilterLimitExceeded",
                format!("The filters have more than {MAX_VALUES} values"),
            ));
        }
        let table = T::filters();
        let checked = filters.iter().map(|filter| Checked::new(&table, filter));
        Ok(Self {
            checked: checked.collect::<Result<_, _>>()?,
            budget: Budget::new(MAX_COMPARED),
        })
    }

    /// Whether every filter matches; nothing does once the budget is spent.
    pub fn matches(&self, item: &T) -> bool {
        let mut checked = self.checked.iter();
        checked.all(|filter| filter.matches(item, &self.budget)) && !self.budget.is_spent()
    }

    /// That there was enough of a budget for all that was matched.
    ///
    /// # Errors
    /// `FilterLimitExceeded`.
    pub fn within_budget(&self) -> Result<(), ApiError> {
        if !self.budget.is_spent() {
            return Ok(());
        }
        Err(ApiError::new(
            "FilterLimitExceeded",
            "The filters' wildcards need too many comparisons: use fewer or simpler ones",
        ))
    }
}

impl<T: Filterable> Checked<T> {
    fn new(table: &Table<T>, filter: &Filter) -> Result<Self, ApiError> {
        let name = filter.name.as_str();
        let invalid = |message: String| Err(ApiError::new("InvalidParameterValue", message));
        // A resource's own filter comes first: `tag:` may be one in another sense.
        let looks_at = match (table.find(name), T::TAGS, name.strip_prefix("tag:")) {
            (Some(read), ..) => LooksAt::Own(read),
            (None, Some(tags), Some(key)) => LooksAt::Tag(tags, key.to_owned()),
            (None, Some(tags), None) if name == "tag-key" => LooksAt::TagKeys(tags),
            _ => return invalid(format!("The filter '{}' is invalid", quoted(name))),
        };
        if filter.values.is_empty() {
            return invalid(format!("The filter '{}' has no values", quoted(name)));
        }
        if filter.values.iter().any(|v| v.len() > MAX_PATTERN) {
            return invalid(format!(
                "A value of the filter '{}' is too long",
                quoted(name)
            ));
        }
        Ok(Self {
            looks_at,
            patterns: filter.values.iter().map(|v| Pattern::new(v)).collect(),
        })
    }

    fn matches(&self, item: &T, budget: &Budget) -> bool {
        let any = |value: &str| self.patterns.iter().any(|p| p.matches(value, budget));
        match &self.looks_at {
            LooksAt::Own(read) => {
                let mut values = Values {
                    budget,
                    patterns: &self.patterns,
                    text: String::new(),
                    matched: false,
                };
                read(item, &mut values);
                values.matched
            }
            LooksAt::Tag(tags, key) => tags(item).get(key).is_some_and(|value| any(value)),
            LooksAt::TagKeys(tags) => tags(item).keys().any(|key| any(key)),
        }
    }
}

/// A filter's value: text, or text with wildcards.
enum Pattern {
    Exact(String),
    Wild(Vec<Token>),
}

enum Token {
    Any,
    One,
    Just(char),
}

impl Pattern {
    fn new(text: &str) -> Self {
        if !text.contains(['*', '?', '\\']) {
            return Self::Exact(text.to_owned());
        }
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Any,
                '?' => Token::One,
                '\\' => Token::Just(chars.next().unwrap_or('\\')),
                c => Token::Just(c),
            });
        }
        Self::Wild(tokens)
    }

    fn matches(&self, text: &str, budget: &Budget) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Wild(tokens) => wildcard(tokens, text, budget),
        }
    }
}

/// Whether `pattern` matches the whole of `text`. At each mismatch the last `*`
/// takes one character more: never worse than the product of both lengths.
fn wildcard(pattern: &[Token], text: &str, budget: &Budget) -> bool {
    if budget.is_spent() {
        return false;
    }
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    let mut steps = text.len();
    while t < text.len() {
        steps += 1;
        match pattern.get(p) {
            Some(Token::Any) => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(Token::One) => {
                p += 1;
                t += 1;
                continue;
            }
            Some(Token::Just(c)) if *c == text[t] => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((after, taken)) = star else {
            budget.spend(steps);
            return false;
        };
        star = Some((after, taken + 1));
        p = after;
        t = taken + 1;
    }
    budget.spend(steps);
    pattern[p..].iter().all(|token| matches!(token, Token::Any))
}

/// How much work wildcards may still make for one request. Without it 200 of
/// them over ten thousand tags are minutes, of a thread that others wait for.
struct Budget(Cell<usize>);

impl Budget {
    fn new(steps: usize) -> Self {
        Self(Cell::new(steps))
    }

    fn spend(&self, steps: usize) {
        self.0.set(self.0.get().saturating_sub(steps));
    }

    fn is_spent(&self) -> bool {
        self.0.get() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plenty() -> Budget {
        Budget::new(MAX_COMPARED)
    }

    #[test]
    fn wildcards_have_a_budget() {
        let slow = Pattern::new(&format!("*{}b", "a".repeat(128)));
        let text = "a".repeat(256);
        let budget = Budget::new(100_000);
        let tried = (0..1000).take_while(|_| {
            assert!(!slow.matches(&text, &budget));
            !budget.is_spent()
        });
        assert!(tried.count() < 10);
        assert!(!Pattern::new("*").matches("a", &budget));
        assert!(Pattern::new("a").matches("a", &budget), "no wildcard");
    }

    #[test]
    fn wildcards() {
        for (pattern, text, matches) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*-1*", "us-east-1a", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("\\?\\\\", "?\\", true),
            ("ABC", "abc", false),
            ("é?", "éü", true),
            ("a**b*", "aXb", true),
        ] {
            assert_eq!(
                Pattern::new(pattern).matches(text, &plenty()),
                matches,
                "{pattern} {text}"
            );
        }
    }

    struct Thing(BTreeMap<String, String>);

    impl Filterable for Thing {
        const TAGS: Option<TagsOf<Self>> = Some(|thing| &thing.0);

        fn filters() -> Table<Self> {
            Table::<Self>::new()
                .on("size", |_, out| out.extend([1, 2]))
                .on_each(["colour", "color"], |_, out| out.add("red"))
        }
    }

    fn matches(filters: &[(&str, &[&str])]) -> Result<bool, String> {
        let filters = filters
            .iter()
            .map(|(name, values)| Filter {
                name: (*name).into(),
                values: values.iter().map(|v| (*v).into()).collect(),
            })
            .collect();
        let thing = Thing(BTreeMap::from([("Name".into(), "web".into())]));
        Filters::<Thing>::new(filters)
            .map(|f| f.matches(&thing))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn values_are_alternatives_and_filters_add_up() {
        assert_eq!(matches(&[]), Ok(true));
        assert_eq!(matches(&[("size", &["9", "2"])]), Ok(true));
        assert_eq!(
            matches(&[("size", &["2"]), ("colour", &["blue"])]),
            Ok(false)
        );
        assert_eq!(matches(&[("tag:Name", &["w*"])]), Ok(true));
        assert_eq!(matches(&[("tag:Other", &["*"])]), Ok(false));
        assert_eq!(matches(&[("tag-key", &["Name"])]), Ok(true));
    }

    #[test]
    fn unknown_and_empty_filters_are_refused() {
        assert_eq!(
            matches(&[("weight", &["1"])]).unwrap_err(),
            "InvalidParameterValue: The filter 'weight' is invalid"
        );
        assert!(matches(&[("size", &[])]).is_err());
        assert!(matches(&[("size", &["x"; 201])]).is_err());
    }

    proptest! {
        #[test]
        fn escaped_text_matches_itself_alone(text in "[a*?\\\\]{0,12}", other in "[a*?\\\\]{0,12}") {
            let escaped: String = text.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(Pattern::new(&escaped).matches(&text, &plenty()));
            prop_assert_eq!(Pattern::new(&escaped).matches(&other, &plenty()), text == other);
        }
    }
}
