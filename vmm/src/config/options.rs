//! The little language behind `--disk`, `--nic` and their like.

/// Splits `key=value,key=value,flag`; each key is taken once, and what is left at the
/// end was not known.
pub(super) struct Options<'a> {
    flag: &'a str,
    pairs: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Options<'a> {
    /// Of `text`, which was given with `flag`.
    pub(super) fn new(flag: &'a str, text: &'a str) -> Result<Self, String> {
        let mut pairs: Vec<(&str, Option<&str>)> = Vec::new();
        for part in text.split(',') {
            let pair = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            if pairs.iter().any(|(key, _)| *key == pair.0) {
                return Err(format!("{flag}: {:?} is given twice", pair.0));
            }
            pairs.push(pair);
        }
        Ok(Self { flag, pairs })
    }

    /// The flag.
    pub(super) fn flag(&self) -> &'a str {
        self.flag
    }

    /// Of a flag that was not given.
    pub(super) fn none(flag: &'a str) -> Self {
        Self {
            flag,
            pairs: Vec::new(),
        }
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(name, _)| *name == key)
    }

    /// The value of a key, if it is there.
    pub(super) fn value(&mut self, key: &str) -> Result<Option<&'a str>, String> {
        match self.pairs.iter().position(|(name, _)| *name == key) {
            None => Ok(None),
            Some(index) => match self.pairs.remove(index).1 {
                Some(value) if !value.is_empty() => Ok(Some(value)),
                _ => Err(format!("{}: {key} needs a value", self.flag)),
            },
        }
    }

    /// Whether a word is there.
    pub(super) fn switch(&mut self, key: &str) -> Result<bool, String> {
        match self.pairs.iter().position(|(name, _)| *name == key) {
            None => Ok(false),
            Some(index) => match self.pairs.remove(index).1 {
                None => Ok(true),
                Some(_) => Err(format!("{}: {key} takes no value", self.flag)),
            },
        }
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{}: {key:?} is not known", self.flag)),
        }
    }
}
