//! Cutting normalized text into pieces, with SentencePiece's two algorithms.
//!
//! BPE merges the neighbours whose concatenation is the piece of the best score, the leftmost of equals, until none is left.
//! Unigram takes the cut whose scores sum to the most (Viterbi); of equals, the one found first. Both as in SentencePiece's
//! `bpe_model.cc` and `unigram_model.cc`, whose rounding (scores are 32-bit floats) decides ties.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::{PieceKind, SentencePiece};

/// What an unknown character costs in a unigram model, below the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// A piece of text by its end; it begins where the one before ends. `None` is a piece that the vocabulary lacks.
pub(super) type Cut = (usize, Option<u32>);

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// User-defined pieces take part in no merge.
    frozen: bool,
}

/// A merge that may happen: symbols `left` and `right` as long as they still make `bytes` bytes.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

impl SentencePiece {
    pub(super) fn bpe(&self, text: &str) -> Vec<Cut> {
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let user_defined = self.user_defined.longest(&text[start..]);
            let length = match user_defined {
                Some((length, _)) => length,
                None => text[start..].chars().next().map_or(1, char::len_utf8),
            };
            let index = symbols.len();
            let (previous, next) = (index.checked_sub(1), (start + length < text.len()).then_some(index + 1));
            symbols.push(Symbol { start, end: start + length, previous, next, frozen: user_defined.is_some() });
            start += length;
        }
        let mut heap = BinaryHeap::new();
        let mut unused: HashMap<&str, usize> = HashMap::new();
        let mut offer = |heap: &mut BinaryHeap<Merge>, symbols: &[Symbol], left: Option<usize>, right: Option<usize>| {
            let (Some(left), Some(right)) = (left, right) else { return };
            let (a, b) = (symbols[left], symbols[right]);
            if a.frozen || b.frozen {
                return;
            }
            let Some(&id) = self.ids.get(&text[a.start..b.end]) else { return };
            let (_, score, kind) = &self.spec.pieces[id as usize];
            if !kind.is_cut_from_text() {
                return;
            }
            if *kind == PieceKind::Unused {
                unused.insert(&text[a.start..b.end], a.end - a.start);
            }
            heap.push(Merge { score: *score, left, right, bytes: b.end - a.start });
        };
        for index in 1..symbols.len() {
            offer(&mut heap, &symbols, Some(index - 1), Some(index));
        }
        while let Some(Merge { left, right, bytes, .. }) = heap.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            // Symbols that were merged away are empty; those that grew have other lengths.
            if a.start == a.end || b.start == b.end || b.end - a.start != bytes || a.next != Some(right) {
                continue;
            }
            symbols[left].end = b.end;
            symbols[left].next = b.next;
            symbols[right].start = symbols[right].end;
            if let Some(next) = b.next {
                symbols[next].previous = Some(left);
            }
            offer(&mut heap, &symbols, symbols[left].previous, Some(left));
            offer(&mut heap, &symbols, Some(left), b.next);
        }
        let mut cuts = Vec::new();
        let mut index = (!symbols.is_empty()).then_some(0);
        while let Some(at) = index {
            let symbol = symbols[at];
            self.resegment(&text[symbol.start..symbol.end], symbol.start, &unused, &mut cuts);
            index = symbol.next;
        }
        cuts
    }

    /// Pieces marked as unused may carry merges but are no result: they are cut again where they were made.
    fn resegment(&self, piece: &str, start: usize, unused: &HashMap<&str, usize>, cuts: &mut Vec<Cut>) {
        // Every split is shorter than the piece, so the stack holds no more entries than the piece has characters.
        let mut stack = vec![(piece, start)];
        while let Some((piece, start)) = stack.pop() {
            let id = self.text_id(piece);
            let is_unused = id.is_some_and(|id| self.spec.pieces[id as usize].2 == PieceKind::Unused);
            match unused.get(piece).filter(|_| is_unused) {
                Some(&cut) => {
                    stack.push((&piece[cut..], start + cut));
                    stack.push((&piece[..cut], start));
                }
                None => cuts.push((start + piece.len(), id)),
            }
        }
    }

    pub(super) fn unigram(&self, text: &str) -> Vec<Cut> {
        #[derive(Clone, Copy)]
        struct Best {
            score: f32,
            start: usize,
            id: Option<u32>,
        }
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        best[0] = Some(Best { score: 0.0, start: 0, id: None });
        let unknown_score = self.lowest - UNKNOWN_PENALTY;
        for (start, char) in text.char_indices() {
            let Some(Best { score: so_far, .. }) = best[start] else { continue };
            let mut offer = |end: usize, score: f32, id: Option<u32>| {
                if best[end].is_none_or(|best| score > best.score) {
                    best[end] = Some(Best { score, start, id });
                }
            };
            let mut single = false;
            self.candidates.each(&text[start..], |length, id| {
                let (_, score, kind) = &self.spec.pieces[id as usize];
                let score = match kind {
                    PieceKind::Unused => return,
                    PieceKind::UserDefined => (f64::from(length as f32 * self.highest) - 0.1) as f32,
                    _ => *score,
                };
                offer(start + length, score + so_far, Some(id));
                single |= length == char.len_utf8();
            });
            if !single {
                offer(start + char.len_utf8(), unknown_score + so_far, None);
            }
        }
        let mut cuts = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let Some(Best { start, id, .. }) = best[end] else { break };
            cuts.push((end, id));
            end = start;
        }
        cuts.reverse();
        cuts
    }
}
