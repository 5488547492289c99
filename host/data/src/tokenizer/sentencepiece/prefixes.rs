//! All keys of a set that a text begins with.
//!
//! The keys are sorted, so those that share a prefix lie together: a range is narrowed byte by byte.

/// A sorted set of texts with ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Prefixes {
    keys: Vec<(Box<str>, u32)>,
}

impl Prefixes {
    pub(super) fn new(keys: impl IntoIterator<Item = (Box<str>, u32)>) -> Self {
        let mut keys: Vec<_> = keys.into_iter().filter(|(key, _)| !key.is_empty()).collect();
        keys.sort();
        keys.dedup_by(|a, b| a.0 == b.0);
        Self { keys }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Calls `found` with length and id of every key that `text` begins with, shortest first.
    pub(super) fn each(&self, text: &str, mut found: impl FnMut(usize, u32)) {
        let mut range = &self.keys[..];
        for (depth, &byte) in text.as_bytes().iter().enumerate() {
            let key_byte = |key: &(Box<str>, u32)| key.0.as_bytes().get(depth).copied();
            let start = range.partition_point(|key| key_byte(key) < Some(byte));
            let end = start + range[start..].partition_point(|key| key_byte(key) == Some(byte));
            range = &range[start..end];
            match range.first() {
                None => return,
                Some((key, id)) if key.len() == depth + 1 => found(key.len(), *id),
                Some(_) => {}
            }
        }
    }

    /// Length and id of the longest key that `text` begins with.
    pub(super) fn longest(&self, text: &str) -> Option<(usize, u32)> {
        let mut longest = None;
        self.each(text, |length, id| longest = Some((length, id)));
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_found_shortest_first() {
        let keys = ["ab", "a", "abcd", "b", "aé", ""].into_iter().zip(0u32..).map(|(key, id)| (key.into(), id));
        let set = Prefixes::new(keys);
        let mut found = vec![];
        set.each("abcx", |length, id| found.push((length, id)));
        assert_eq!(found, [(1, 1), (2, 0)]);
        assert_eq!(set.longest("aéa"), Some((3, 4)));
        assert_eq!(set.longest("x"), None);
        assert_eq!(set.longest(""), None);
    }
}
