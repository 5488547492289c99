//! Which page of the cache belongs to which sequence.
//!
//! Sequences take pages as they grow and give them back when they end. A page that is full is known by its tokens and by the pages
//! before it, so that a sequence which begins like another one shares its full pages instead of computing them again (block tables and
//! sharing as in vLLM, Kwon et al. 2023). Only full pages are shared, and a full page is never written again, so nothing is copied.
//! A known page that nobody uses keeps its content until its place is needed; the one that was given back first goes first.
//!
//! Pages are compared by their tokens, not by a hash of them: a collision would answer with somebody else's context.

use std::collections::{BTreeMap, HashMap};

use swift_graph::op::CachedAttention;

/// Tokens of a page.
pub(crate) const PAGE: usize = CachedAttention::PAGE as usize;

/// Names a sequence of full pages by content. Numbers are never used again, so what follows a page that was forgotten is not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Chain(u64);

impl Chain {
    /// No pages.
    pub(crate) const EMPTY: Chain = Chain(0);
}

/// What a full page holds: its tokens, after those of other pages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Content {
    before: Chain,
    tokens: [i32; PAGE],
}

/// A page that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) page: u32,
    /// The pages up to this one.
    pub(crate) chain: Chain,
}

#[derive(Debug, Default)]
struct Page {
    users: u32,
    content: Option<Content>,
    /// When the last user gave it back.
    idle_since: u64,
}

/// All pages of a cache.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    /// Pages that hold nothing of use. The last one given back is taken first: its memory is there already.
    free: Vec<u32>,
    known: HashMap<Content, Found>,
    /// Known pages that nobody uses, by the time they were given back.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

impl Pages {
    pub(crate) fn new(count: usize) -> Pages {
        let pages = (0..count).map(|_| Page::default()).collect();
        let free = (0..count as u32).rev().collect();
        Pages { pages, free, known: HashMap::new(), idle: BTreeMap::new(), clock: 0 }
    }

    /// Pages that can be taken.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A page to write to.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                if let Some(content) = self.pages[page as usize].content.take() {
                    self.known.remove(&content);
                }
                page
            }
        };
        self.pages[page as usize].users = 1;
        Some(page)
    }

    /// The page that holds these tokens after those of `before`; the caller is one more user of it.
    pub(crate) fn find(&mut self, before: Chain, tokens: [i32; PAGE]) -> Option<Found> {
        let found = *self.known.get(&Content { before, tokens })?;
        let page = &mut self.pages[found.page as usize];
        if page.users == 0 {
            self.idle.remove(&page.idle_since);
        }
        page.users += 1;
        Some(found)
    }

    /// Whether [`Pages::find`] would find something.
    pub(crate) fn knows(&self, before: Chain, tokens: [i32; PAGE]) -> Option<Chain> {
        self.known.get(&Content { before, tokens }).map(|found| found.chain)
    }

    /// Makes known that `page` is full of these tokens after those of `before`.
    pub(crate) fn learn(&mut self, page: u32, before: Chain, tokens: [i32; PAGE]) -> Chain {
        let content = Content { before, tokens };
        if let Some(found) = self.known.get(&content) {
            // Somebody computed the same at the same time; this copy stays with its user.
            return found.chain;
        }
        let chain = Chain(self.tick());
        self.known.insert(content.clone(), Found { page, chain });
        self.pages[page as usize].content = Some(content);
        chain
    }

    /// Gives pages back, those of one sequence in its order.
    pub(crate) fn release(&mut self, pages: impl DoubleEndedIterator<Item = u32>) {
        // What comes last in a sequence is of use to fewest others, so it is given back first.
        for page in pages.rev() {
            let now = self.tick();
            let entry = &mut self.pages[page as usize];
            entry.users -= 1;
            match (entry.users, &entry.content) {
                (0, Some(_)) => {
                    entry.idle_since = now;
                    self.idle.insert(now, page);
                }
                (0, None) => self.free.push(page),
                _ => {}
            }
        }
    }

    /// Forgets what pages hold, because the weights or the cache have changed.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
        self.free.extend(std::mem::take(&mut self.idle).into_values());
        self.pages.iter_mut().for_each(|page| page.content = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(seed: i32) -> [i32; PAGE] {
        std::array::from_fn(|i| seed * 1000 + i as i32)
    }

    #[test]
    fn pages_are_shared_by_content_and_place() {
        let mut pages = Pages::new(4);
        let (a, b) = (pages.take().unwrap(), pages.take().unwrap());
        let first = pages.learn(a, Chain::EMPTY, block(1));
        let second = pages.learn(b, first, block(2));
        assert_eq!(pages.find(Chain::EMPTY, block(1)), Some(Found { page: a, chain: first }));
        assert_eq!(pages.find(first, block(2)), Some(Found { page: b, chain: second }));
        // The same tokens elsewhere are other keys and values.
        assert_eq!(pages.find(Chain::EMPTY, block(2)), None);
        assert_eq!(pages.find(second, block(2)), None);
        // One of two users leaves, then the other: the content stays.
        pages.release([a, b].into_iter());
        pages.release([a, b].into_iter());
        assert_eq!(pages.available(), 4);
        assert_eq!(pages.find(Chain::EMPTY, block(1)).map(|f| f.page), Some(a));
        assert_eq!(pages.available(), 3);
    }

    #[test]
    fn idle_pages_go_when_nothing_else_is_left_last_ones_first() {
        let mut pages = Pages::new(3);
        let taken: Vec<u32> = (0..3).map(|_| pages.take().unwrap()).collect();
        assert_eq!(pages.take(), None);
        let mut chain = Chain::EMPTY;
        for (i, &page) in taken.iter().enumerate().take(2) {
            chain = pages.learn(page, chain, block(i as i32));
        }
        pages.release(taken.iter().copied());
        assert_eq!(pages.take(), Some(taken[2]), "the page without content goes first");
        assert_eq!(pages.take(), Some(taken[1]), "then the end of the sequence");
        let first = pages.find(Chain::EMPTY, block(0)).expect("the beginning is still known");
        assert_eq!(first.page, taken[0]);
        assert_eq!(pages.find(first.chain, block(1)), None);
        assert_eq!(pages.take(), None);
    }

    #[test]
    fn what_follows_a_forgotten_page_is_never_found() {
        let mut pages = Pages::new(2);
        let (a, b) = (pages.take().unwrap(), pages.take().unwrap());
        let first = pages.learn(a, Chain::EMPTY, block(1));
        pages.forget();
        // A sequence that was running goes on under a number that nobody can reach.
        pages.learn(b, first, block(2));
        let again = pages.learn(a, Chain::EMPTY, block(1));
        assert_ne!(again, first);
        assert_eq!(pages.find(again, block(2)), None);
        pages.release([a, b].into_iter());
        assert_eq!(pages.available(), 2);
    }
}
