//! Instruction data out of a seed: arithmetic, dates, units and small tables, with short exact answers.
//!
//! A tiny model can learn all of it on a laptop, which makes whole runs (pre-train, fine-tune, evaluate) checkable:
//!
//! | split | holds |
//! |---|---|
//! | `pretrain` | plain text that states the facts, in other words than the questions; one turn of role `text` |
//! | `train` | questions and answers |
//! | `heldout` | questions and answers that `train` never asks, for exact-match evaluation |
//! | `preference` | questions of `train` with a right and a wrong answer |
//!
//! Which questions are held out depends on their content alone: no seed moves one over, and 3 + 4 is on 4 + 3's side.

mod question;
mod random;

use question::{FACTS, QUESTIONS, Question, Shares};
use random::{Random, content_hash};
use swift_sdk::prelude::*;

config! {
    /// Generated arithmetic, dates, units and tables with exact answers.
    pub struct Synthetic {
        /// Other seeds draw other rows.
        seed: u64 = 42,
        /// Documents in `pretrain`.
        pretrain_rows: u64 = 200_000,
        /// Facts in each document.
        facts: u64 = 4,
        /// Rows in `train` and in `preference`.
        train_rows: u64 = 8_000,
        /// Rows in `heldout`.
        heldout_rows: u64 = 500,
        /// Whether `pretrain` also states the facts that held-out rows ask for. They are asked for nowhere in either case.
        pretrain_heldout: bool = true,
    }
}

/// One question in ten is held out.
fn held_out(question: &Question) -> bool {
    content_hash(&question.content()).is_multiple_of(10)
}

fn draw(random: &mut Random, shares: &Shares, accept: impl Fn(&Question) -> bool) -> Question {
    loop {
        let question = Question::draw(random, shares);
        if accept(&question) {
            return question;
        }
    }
}

impl Synthetic {
    fn rows(&self, split: &str) -> Option<u64> {
        match split {
            "pretrain" => Some(self.pretrain_rows),
            "train" | "preference" => Some(self.train_rows),
            "heldout" => Some(self.heldout_rows),
            _ => None,
        }
    }

    fn sample(&self, split: &str, index: u64) -> Sample {
        let mut random = Random::new(self.seed, split, index);
        let random = &mut random;
        let sample = match split {
            "pretrain" => {
                let accept = |q: &Question| self.pretrain_heldout || !held_out(q);
                let facts: Vec<String> = (0..self.facts.max(1)).map(|_| draw(random, &FACTS, accept).statement(random)).collect();
                Sample::new(vec![Turn { train: true, ..Turn::text("text", facts.join("\n")) }])
            }
            "preference" => {
                let question = draw(random, &QUESTIONS, |q| !held_out(q));
                let (right, wrong) = (question.answer(), question.wrong_answer(random));
                let mut sample = Sample::new(vec![Turn::text("user", question.prompt(random))]).answer(&right);
                sample.chosen = vec![Turn::text("assistant", right)];
                sample.rejected = vec![Turn::text("assistant", wrong)];
                sample
            }
            _ => {
                let question = draw(random, &QUESTIONS, |q| held_out(q) == (split == "heldout"));
                let answer = question.answer();
                let turns = vec![Turn::text("user", question.prompt(random)), Turn::text("assistant", answer.as_str())];
                Sample::new(turns).answer(&answer)
            }
        };
        Sample { id: index, ..sample }
    }
}

impl Dataset for Synthetic {
    fn shards(&self) -> Vec<Shard> {
        ["pretrain", "train", "heldout", "preference"].map(Shard::generated).into()
    }

    fn generate(&self, split: &str, first: u64, count: u32) -> Result<Vec<Sample>> {
        let rows = self.rows(split).ok_or_else(|| {
            Error::missing(format!("there is no split `{split}`")).hint("`pretrain`, `train`, `heldout` or `preference`")
        })?;
        let end = first.saturating_add(u64::from(count)).min(rows);
        Ok((first..end).map(|index| self.sample(split, index)).collect())
    }
}

plugin! { dataset "synthetic": Synthetic }

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text(turn: &Turn) -> &str {
        match turn.parts.as_slice() {
            [Part::Text(text)] => text,
            _ => panic!("a turn is one text"),
        }
    }

    #[test]
    fn held_out_questions_are_never_asked_in_training() {
        let data = Synthetic::default();
        let prompts = |split, count| -> BTreeSet<String> {
            let rows = data.generate(split, 0, count).expect("a split");
            rows.iter().map(|s| text(&s.turns[0]).to_string()).collect()
        };
        let (train, heldout) = (prompts("train", 8000), prompts("heldout", 500));
        assert!(train.is_disjoint(&heldout));
        assert!(prompts("preference", 1000).is_disjoint(&heldout));
        assert!(train.len() > 3000 && heldout.len() > 250, "{} and {}", train.len(), heldout.len());
    }

    #[test]
    fn rows_depend_on_their_index_alone() {
        let data = Synthetic::default();
        let batch = data.generate("train", 0, 100).expect("a split");
        let alone = data.generate("train", 73, 1).expect("a split");
        assert_eq!(text(&batch[73].turns[0]), text(&alone[0].turns[0]));
        assert!(data.generate("heldout", 499, 10).expect("a split").len() == 1);
        assert!(data.generate("test", 0, 1).is_err());
    }

    #[test]
    fn answers_are_short_and_wrong_ones_are_wrong() {
        let data = Synthetic::default();
        for sample in data.generate("preference", 0, 2000).expect("a split") {
            let (right, wrong) = (text(&sample.chosen[0]), text(&sample.rejected[0]));
            assert!((1..=6).contains(&right.len()) && right != wrong);
        }
    }
}
