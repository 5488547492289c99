//! Dataset plugins: rows to samples, or samples from nothing. They run on the data engine, bounded by the clock.

use crate::Result;
use crate::bindings::{guest, host};
use crate::check;
use crate::decl::Kind;
use crate::guest::Guest;
use crate::load::Plugin;

/// A file or generated split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Path or URI; free text for generated splits.
    pub uri: String,
    /// `train`, `test`, ...
    pub split: String,
    /// `json`, `jsonl`, `generated`, ...
    pub format: String,
    /// Size, if known.
    pub bytes: Option<u64>,
}

/// A piece of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Name of an image.
    Image(String),
    /// Name of a sound.
    Audio(String),
    /// Name of a film.
    Video(String),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Content.
    pub parts: Vec<Part>,
    /// Whether the loss sees it.
    pub train: bool,
    /// Its weight in the loss.
    pub weight: f32,
}

/// One training sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Stable number.
    pub id: u64,
    /// The conversation.
    pub turns: Vec<Turn>,
    /// Preferred continuation.
    pub chosen: Vec<Turn>,
    /// Other continuation.
    pub rejected: Vec<Turn>,
    /// Whether the answer is good (unpaired preference).
    pub label: Option<bool>,
    /// A JSON object; `answer` is the exact answer.
    pub extra: String,
}

/// An instance of a dataset plugin.
pub struct DatasetGuest {
    guest: Guest,
    typed: guest::dataset::Guest,
}

impl Plugin {
    /// A dataset guest.
    ///
    /// # Errors
    /// When the plugin is no dataset or cannot be instantiated.
    pub fn dataset(&self) -> Result<DatasetGuest> {
        let (guest, typed) =
            self.guest(Kind::Dataset, guest::dataset::GuestIndices::new, |i, store, instance| i.load(store, instance))?;
        Ok(DatasetGuest { guest, typed })
    }
}

impl DatasetGuest {
    /// The dataset's files and splits.
    ///
    /// # Errors
    /// When the plugin refuses the configuration or answers with nonsense.
    pub fn shards(&mut self, config: &str) -> Result<Vec<Shard>> {
        const FUNCTION: &str = "dataset.list-shards";
        let typed = &self.typed;
        let shards = self.guest.ask(FUNCTION, |store| typed.call_list_shards(store, config))?;
        let limits = self.guest.limits();
        let fine = check::count("shards", shards.len(), "rows", limits.rows).and_then(|()| {
            shards.iter().try_for_each(|s| {
                check::name("shard", &s.uri, limits)?;
                check::name("split", &s.split, limits)?;
                check::name("format", &s.format, limits)
            })
        });
        fine.map_err(|message| self.guest.answer(FUNCTION, message))?;
        let shard = |s: guest::dataset::Shard| Shard { uri: s.uri, split: s.split, format: s.format, bytes: s.bytes };
        Ok(shards.into_iter().map(shard).collect())
    }

    /// Samples of JSON rows, in order.
    ///
    /// # Errors
    /// When the plugin cannot read a row or answers with nonsense.
    pub fn map_rows(&mut self, config: &str, rows: &[String]) -> Result<Vec<Sample>> {
        const FUNCTION: &str = "dataset.map-rows";
        let typed = &self.typed;
        let samples = self.guest.ask(FUNCTION, |store| typed.call_map_rows(store, config, rows))?;
        self.samples(FUNCTION, samples, u64::MAX)
    }

    /// Samples `first..first + count` of a generated split; fewer at its end.
    ///
    /// # Errors
    /// When the plugin does not know the split or answers with nonsense.
    pub fn generate(&mut self, config: &str, split: &str, first: u64, count: u32) -> Result<Vec<Sample>> {
        const FUNCTION: &str = "dataset.generate";
        let typed = &self.typed;
        let samples = self.guest.ask(FUNCTION, |store| typed.call_generate(store, config, split, first, count))?;
        self.samples(FUNCTION, samples, u64::from(count))
    }

    fn samples(&self, function: &'static str, samples: Vec<host::sample_types::Sample>, most: u64) -> Result<Vec<Sample>> {
        let limits = self.guest.limits();
        let bad = |message: String| self.guest.answer(function, message);
        check::count("samples", samples.len(), "rows", limits.rows).map_err(bad)?;
        if samples.len() as u64 > most {
            return Err(bad(format!("{} samples, but {most} were asked for", samples.len())));
        }
        samples.into_iter().map(|s| self.sample(s).map_err(bad)).collect()
    }

    fn sample(&self, s: host::sample_types::Sample) -> Result<Sample, String> {
        let id = s.id;
        let turns = |list: Vec<host::sample_types::Turn>| -> Result<Vec<Turn>, String> {
            list.into_iter().map(|t| self.turn(t).map_err(|e| format!("sample {id}: {e}"))).collect()
        };
        let sample = Sample {
            id,
            turns: turns(s.turns)?,
            chosen: turns(s.chosen)?,
            rejected: turns(s.rejected)?,
            label: s.label,
            extra: if s.extra.is_empty() { "{}".into() } else { s.extra },
        };
        if sample.turns.is_empty() && sample.chosen.is_empty() {
            return Err(format!("sample {id} has no turns"));
        }
        // Only its form is checked; what the keys mean is between the dataset and the loss or reward.
        let extra: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(&sample.extra);
        extra.map_err(|e| format!("sample {id}: `extra` is no JSON object: {e}"))?;
        Ok(sample)
    }

    fn turn(&self, t: host::sample_types::Turn) -> Result<Turn, String> {
        use host::sample_types::Part as W;
        check::name("role", &t.role, self.guest.limits())?;
        if !t.weight.is_finite() || t.weight < 0.0 {
            return Err(format!("a turn has the weight {}", t.weight));
        }
        let part = |p: W| match p {
            W::Text(text) => Part::Text(text),
            W::Tokens(ids) => Part::Tokens(ids),
            W::Image(name) => Part::Image(name),
            W::Audio(name) => Part::Audio(name),
            W::Video(name) => Part::Video(name),
        };
        Ok(Turn { role: t.role, parts: t.parts.into_iter().map(part).collect(), train: t.train, weight: t.weight })
    }

    /// Name of the plugin.
    pub fn plugin(&self) -> &str {
        self.guest.plugin()
    }
}

impl Turn {
    /// All text parts, joined.
    pub fn text(&self) -> String {
        let texts = self.parts.iter().filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None });
        texts.collect()
    }
}
