//! Who runs next: sequences wait, get a slot and pages of the cache, and lose them again when pages are short.
//!
//! A sequence waits until there are pages for all its tokens so far. If an older one then needs a page that is not there, the youngest
//! goes back to the front of the queue and is computed again later, as far as its pages are not still known (recomputation as in vLLM).
//! The cache holds at least one sequence of full length, so the oldest always goes on.
//!
//! **Invariant:** with [`Batching::Reproducible`], the runs that compute a sequence depend on its own tokens only. Exact products sum a
//! row in an order that depends on how many rows there are, so whole chunks of prompts are shared there and nothing else is, and an
//! answer that is computed again is computed token by token.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::pages::{Chain, PAGE, Pages};
use crate::stop::AnswerText;
use crate::{Batching, Request, RequestId};

/// One answer, from its submission to its end.
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) choice: usize,
    pub(crate) request: Arc<Request>,
    /// Submissions before it.
    order: u64,
    /// Tokens in the cache.
    cached: usize,
    pub(crate) answer: Vec<i32>,
    pub(crate) text: AnswerText,
    /// Pages of the cache, in order.
    table: Vec<u32>,
    /// How many of the first ones are known by content, and as what; `None` after a page that is not.
    known: usize,
    chain: Option<Chain>,
}

impl Sequence {
    pub(crate) fn new(id: RequestId, choice: usize, request: Arc<Request>, order: u64) -> Sequence {
        let text = AnswerText::new(&request.stop_strings);
        let (answer, table, chain) = (Vec::new(), Vec::new(), Some(Chain::EMPTY));
        Sequence { id, choice, request, order, cached: 0, answer, text, table, known: 0, chain }
    }

    fn len(&self) -> usize {
        self.request.prompt.len() + self.answer.len()
    }

    /// Submissions before it, which names it among all of an engine.
    pub(crate) fn order(&self) -> u64 {
        self.order
    }

    /// Tokens in the cache.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    /// Tokens that are not in the cache yet.
    pub(crate) fn pending(&self) -> usize {
        self.len() - self.cached
    }

    /// Pages of the cache, in order.
    pub(crate) fn table(&self) -> &[u32] {
        &self.table
    }

    pub(crate) fn token(&self, position: usize) -> i32 {
        let prompt = &self.request.prompt;
        prompt.get(position).copied().unwrap_or_else(|| self.answer[position - prompt.len()])
    }

    /// The tokens of page `index`, which must be full.
    fn block(&self, index: usize) -> [i32; PAGE] {
        std::array::from_fn(|i| self.token(index * PAGE + i))
    }

    /// The first page that is not known yet, if all its tokens are.
    fn next_block(&self) -> Option<(Chain, [i32; PAGE])> {
        let chain = self.chain.filter(|_| (self.known + 1) * PAGE <= self.len())?;
        Some((chain, self.block(self.known)))
    }
}

/// A part of a run: a slot, and how many of its pending tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Share {
    pub(crate) slot: usize,
    pub(crate) count: usize,
}

/// What an engine has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens that went through the model.
    pub computed: u64,
    /// Tokens whose keys and values were found in the cache.
    pub reused: u64,
    /// Times that a sequence lost its pages, to an older one or to another engine, and was computed again.
    pub preempted: u64,
}

/// All sequences and pages of an engine.
pub(crate) struct Scheduler {
    batching: Batching,
    chunk: usize,
    pages: Pages,
    /// Pages that are shared together; `None` where nothing is.
    unit: Option<usize>,
    queue: VecDeque<Sequence>,
    live: Vec<Option<Sequence>>,
    pub(crate) counters: Counters,
}

impl Scheduler {
    /// `pages` must be enough for one sequence of full length.
    pub(crate) fn new(slots: usize, pages: usize, chunk: usize, batching: Batching, share: bool) -> Scheduler {
        let unit = match batching {
            Batching::Throughput => Some(1),
            Batching::Reproducible => (chunk.is_multiple_of(PAGE)).then_some(chunk / PAGE),
        };
        Scheduler {
            batching,
            chunk,
            pages: Pages::new(pages),
            unit: unit.filter(|_| share),
            queue: VecDeque::new(),
            live: (0..slots).map(|_| None).collect(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn submit(&mut self, sequence: Sequence) {
        self.queue.push_back(sequence);
    }

    /// Slots.
    pub(crate) fn slots(&self) -> usize {
        self.live.len()
    }

    /// Answers that wait for a slot, and answers in progress.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.live.iter().flatten().count())
    }

    /// The sequence in a slot, to look at.
    pub(crate) fn get(&self, slot: usize) -> Option<&Sequence> {
        self.live[slot].as_ref()
    }

    pub(crate) fn sequence(&mut self, slot: usize) -> Option<&mut Sequence> {
        self.live[slot].as_mut()
    }

    /// Ends the answers that `of` names; says whether there were any.
    pub(crate) fn end(&mut self, of: impl Fn(RequestId, usize) -> bool) -> bool {
        let before = self.queue.len();
        self.queue.retain(|s| !of(s.id, s.choice));
        let mut ended = self.queue.len() < before;
        for slot in 0..self.live.len() {
            if self.live[slot].as_ref().is_some_and(|s| of(s.id, s.choice)) {
                self.finish(slot);
                ended = true;
            }
        }
        ended
    }

    /// Frees a slot and its pages.
    pub(crate) fn finish(&mut self, slot: usize) {
        if let Some(sequence) = self.live[slot].take() {
            self.pages.release(sequence.table.into_iter());
        }
    }

    /// Forgets what pages hold, because weights have changed. Sequences in progress keep theirs.
    pub(crate) fn forget(&mut self) {
        self.pages.forget();
    }

    /// The content of the cache is lost: sequences in progress are computed again.
    pub(crate) fn restart(&mut self) {
        let mut ages: Vec<_> = self.live.iter().enumerate().filter_map(|(slot, s)| Some((s.as_ref()?.order, slot))).collect();
        ages.sort_unstable();
        ages.into_iter().rev().for_each(|(_, slot)| self.preempt(slot));
        self.pages.forget();
    }

    /// The runs of a step, with pages for their tokens.
    pub(crate) fn plan(&mut self) -> Vec<Vec<Share>> {
        self.admit();
        let mut order: Vec<(bool, u64, usize)> = Vec::with_capacity(self.live.len());
        for (slot, sequence) in self.live.iter().enumerate() {
            order.extend(sequence.as_ref().map(|s| (s.pending() > 1, s.order, slot)));
        }
        // Answers before prompts, older ones before younger ones.
        order.sort_unstable();
        let (mut shares, mut room, mut in_progress) = (Vec::with_capacity(order.len()), self.chunk, HashSet::new());
        let alone = order.len() == 1;
        for (prefills, _, slot) in order {
            if !prefills {
                self.share(slot, 1, &mut shares);
                continue;
            }
            if room == 0 {
                continue;
            }
            self.adopt(slot);
            let Some(sequence) = &self.live[slot] else { continue };
            let count = match self.batching {
                Batching::Throughput => {
                    // Whoever computes the same page in this step leaves it to be found in the next.
                    if !alone && let Some(block) = sequence.next_block().filter(|_| self.unit.is_some()) {
                        let begins = sequence.cached == sequence.known * PAGE && sequence.cached + PAGE < sequence.len();
                        if !in_progress.insert(block) && begins {
                            continue;
                        }
                    }
                    sequence.pending().min(room)
                }
                Batching::Reproducible => {
                    let rest = sequence.request.prompt.len().saturating_sub(sequence.cached);
                    if rest == 0 { 1 } else { rest.min(self.chunk) }
                }
            };
            if self.share(slot, count, &mut shares) {
                room = if self.batching == Batching::Reproducible { 0 } else { room - count };
            }
        }
        // In the order of slots, whatever the ages.
        shares.sort_unstable();
        match self.batching {
            Batching::Throughput if shares.is_empty() => Vec::new(),
            Batching::Throughput => vec![shares],
            Batching::Reproducible => shares.into_iter().map(|share| vec![share]).collect(),
        }
    }

    /// Gives slots to those that waited longest, while there are pages for their tokens.
    fn admit(&mut self) {
        let lacks = |s: &Sequence| (s.len().div_ceil(PAGE)).saturating_sub(s.table.len());
        let mut promised: usize = self.live.iter().flatten().map(lacks).sum();
        let mut busy = self.live.iter().any(Option::is_some);
        for slot in 0..self.live.len() {
            if self.live[slot].is_some() {
                continue;
            }
            let Some(sequence) = self.queue.front() else { return };
            promised += lacks(sequence);
            if busy && promised > self.pages.available() {
                return;
            }
            self.live[slot] = self.queue.pop_front();
            busy = true;
        }
    }

    /// Adds a share if there are pages for it. Younger sequences give theirs up, and their shares.
    fn share(&mut self, slot: usize, count: usize, shares: &mut Vec<Share>) -> bool {
        loop {
            let Some(sequence) = self.live[slot].as_mut() else { return false };
            let need = (sequence.cached + count).div_ceil(PAGE);
            while sequence.table.len() < need
                && let Some(page) = self.pages.take()
            {
                sequence.table.push(page);
            }
            if sequence.table.len() >= need {
                shares.push(Share { slot, count });
                return true;
            }
            let ages = self.live.iter().enumerate().filter_map(|(slot, s)| Some((s.as_ref()?.order, slot)));
            let Some((_, youngest)) = ages.max() else { return false };
            self.preempt(youngest);
            shares.retain(|share| share.slot != youngest);
        }
    }

    /// Sends a sequence back to the queue.
    fn preempt(&mut self, slot: usize) {
        let Some(mut sequence) = self.live[slot].take() else { return };
        self.pages.release(std::mem::take(&mut sequence.table).into_iter());
        (sequence.cached, sequence.known, sequence.chain) = (0, 0, Some(Chain::EMPTY));
        self.queue.push_front(sequence);
        self.counters.preempted += 1;
    }

    /// Takes over the pages that others have computed. The last token is always left: its logits are wanted.
    fn adopt(&mut self, slot: usize) {
        let (Some(unit), Some(sequence)) = (self.unit, self.live[slot].as_mut()) else { return };
        let end = match self.batching {
            Batching::Throughput => sequence.len() - 1,
            Batching::Reproducible => sequence.request.prompt.len().min(sequence.len() - 1),
        };
        while sequence.cached == sequence.known * PAGE && sequence.cached + unit * PAGE <= end {
            // All of the unit, or nothing.
            let mut blocks = (sequence.known..sequence.known + unit).map(|index| sequence.block(index));
            if blocks.try_fold(sequence.chain, |chain, block| Some(self.pages.knows(chain?, block))).flatten().is_none() {
                return;
            }
            for index in sequence.known..sequence.known + unit {
                let found = sequence.chain.and_then(|chain| self.pages.find(chain, sequence.block(index)));
                let Some(found) = found else { return };
                // Pages that were taken for it before, and not written yet, go back.
                self.pages.release(sequence.table.drain(index..));
                sequence.table.push(found.page);
                (sequence.chain, sequence.known) = (Some(found.chain), index + 1);
                sequence.cached += PAGE;
                self.counters.reused += PAGE as u64;
            }
        }
    }

    /// Notes that a share has run, and makes the pages known that it filled.
    pub(crate) fn ran(&mut self, Share { slot, count }: Share) {
        self.counters.computed += count as u64;
        let Some(sequence) = self.live[slot].as_mut() else { return };
        let start = sequence.cached;
        sequence.cached += count;
        let Some(unit) = self.unit else { return };
        let anyhow = self.batching == Batching::Throughput;
        let whole = anyhow || count == unit * PAGE && start.is_multiple_of(unit * PAGE);
        while (sequence.known + 1) * PAGE <= sequence.cached
            && let Some(chain) = sequence.chain
        {
            let block = sequence.block(sequence.known);
            sequence.chain = whole.then(|| self.pages.learn(sequence.table[sequence.known], chain, block));
            sequence.known += usize::from(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(order: u64, prompt: impl IntoIterator<Item = i32>) -> Sequence {
        let request = Arc::new(Request::new(prompt.into_iter().collect(), 100));
        Sequence::new(RequestId::of(order), 0, request, order)
    }

    /// Runs a step in which every sequence whose tokens are all cached draws `token`.
    fn step(scheduler: &mut Scheduler, token: i32) -> Vec<Share> {
        let mut all = Vec::new();
        for run in scheduler.plan() {
            for share in run {
                scheduler.ran(share);
                let sequence = scheduler.sequence(share.slot).unwrap();
                assert!(sequence.cached() <= sequence.table().len() * PAGE);
                if sequence.pending() == 0 {
                    sequence.answer.push(token);
                }
                all.push(share);
            }
        }
        all
    }

    #[test]
    fn equal_prompts_are_computed_once() {
        let mut s = Scheduler::new(4, 40, 512, Batching::Throughput, true);
        (0..3).for_each(|i| s.submit(sequence(i, 0..150)));
        // The first computes, the others wait, then take two pages over and compute the rest.
        assert_eq!(step(&mut s, 7), [Share { slot: 0, count: 150 }]);
        let rest = [Share { slot: 0, count: 1 }, Share { slot: 1, count: 22 }, Share { slot: 2, count: 22 }];
        assert_eq!(step(&mut s, 7), rest);
        assert_eq!(s.counters.reused, 256);
        // A later conversation goes on where an answer ended.
        (0..60).for_each(|_| drop(step(&mut s, 7)));
        assert!(s.end(|_, _| true));
        let history = (0..150).chain(std::iter::repeat_n(7, 50)).chain(500..520);
        s.submit(sequence(9, history));
        assert_eq!(step(&mut s, 8), [Share { slot: 0, count: 220 - 192 }]);
    }

    #[test]
    fn the_last_token_is_always_computed() {
        let mut s = Scheduler::new(1, 4, 512, Batching::Throughput, true);
        s.submit(sequence(0, 0..128));
        step(&mut s, 1);
        s.end(|_, _| true);
        s.submit(sequence(1, 0..128));
        assert_eq!(step(&mut s, 1), [Share { slot: 0, count: 64 }]);
    }

    #[test]
    fn the_youngest_gives_way_and_comes_back() {
        let mut s = Scheduler::new(3, 4, 512, Batching::Throughput, true);
        s.submit(sequence(0, 0..60));
        s.submit(sequence(1, 100..160));
        s.submit(sequence(2, 200..300));
        // The third waits: its two pages would leave none for the others to grow into, but they are there.
        step(&mut s, 7);
        assert_eq!(s.load(), (0, 3));
        // Two sequences reach their second page when none is left.
        (0..5).for_each(|_| drop(step(&mut s, 7)));
        assert_eq!((s.load(), s.counters.preempted), ((1, 2), 1));
        (0..40).for_each(|_| drop(step(&mut s, 7)));
        assert!(s.end(|id, _| id == RequestId::of(0)));
        let back = step(&mut s, 7);
        assert_eq!(s.load(), (0, 2));
        let third = back.iter().find(|share| s.live[share.slot].as_ref().is_some_and(|q| q.order == 2)).unwrap();
        assert!(third.count > 1, "it is computed again: {third:?}");
    }

    #[test]
    fn reproducible_runs_share_whole_chunks_of_prompts_only() {
        let mut s = Scheduler::new(2, 20, 128, Batching::Reproducible, true);
        s.submit(sequence(0, 0..200));
        let counts = |shares: Vec<Share>| shares.iter().map(|s| s.count).collect::<Vec<_>>();
        assert_eq!(counts(step(&mut s, 7)), [128]);
        assert_eq!(counts(step(&mut s, 7)), [72]);
        assert_eq!(counts(step(&mut s, 7)), [1]);
        // The page of 128..192 was computed in a shorter chunk.
        s.submit(sequence(1, (0..192).chain(900..930)));
        assert_eq!(counts(step(&mut s, 7)), [1, 94]);
        // Computed again, an answer goes token by token.
        s.preempt(0);
        assert_eq!(counts(step(&mut s, 7)), [72, 1]);
        assert_eq!(counts(step(&mut s, 7)), [1, 1]);
    }
}
