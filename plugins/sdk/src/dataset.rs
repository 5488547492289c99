//! Datasets: rows of JSON to samples of turns, or samples out of nothing but a seed.

use std::marker::PhantomData;

use crate::bindings::export_world;
pub use crate::bindings::swift::plugin::sample_types::{Part, Sample, Turn};
use crate::{Config, Error, ErrorCode, Json, Result, enter};

export_world!(
    data "package swift:sdk-dataset; world dataset { export swift:plugin/dataset@0.1.0; }",
    "swift:sdk-dataset/dataset",
    "swift_sdk::dataset",
    "__export_dataset"
);

use exports::swift::plugin::dataset::Guest;
pub use exports::swift::plugin::dataset::Shard;

/// A dataset: either maps the host's rows or generates samples.
pub trait Dataset: Config {
    /// Refuses values that make no sense together or out of range.
    ///
    /// # Errors
    /// With what is wrong and what would be right.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Files of its own; none for a mapper of whatever file the user names. A generated dataset lists its splits.
    fn shards(&self) -> Vec<Shard> {
        Vec::new()
    }

    /// Samples of one row.
    ///
    /// # Errors
    /// With what the row lacks; the row's number is added.
    fn map_row(&self, _row: &Json) -> Result<Vec<Sample>> {
        Err(Error::new(ErrorCode::UnsupportedOp, "this dataset generates its samples and maps no rows"))
    }

    /// Samples `first..first + count` of a split, a function of the arguments and the configuration only.
    ///
    /// # Errors
    /// For a split that does not exist.
    fn generate(&self, _split: &str, _first: u64, _count: u32) -> Result<Vec<Sample>> {
        Err(Error::new(
            ErrorCode::UnsupportedOp,
            "this dataset maps rows and generates nothing; give it rows with `--dataset FILE`",
        ))
    }
}

impl Turn {
    /// A turn of text. The assistant's turns are trained on, others are not.
    pub fn text(role: &str, text: impl Into<String>) -> Turn {
        Turn { role: role.into(), parts: vec![Part::Text(text.into())], train: role == "assistant", weight: 1.0 }
    }
}

impl Sample {
    /// A conversation.
    pub fn new(turns: Vec<Turn>) -> Sample {
        Sample { id: 0, turns, chosen: Vec::new(), rejected: Vec::new(), label: None, extra: "{}".into() }
    }

    /// Sets the exact answer that `eval` compares with.
    #[must_use]
    pub fn answer(mut self, answer: &str) -> Sample {
        self.extra = serde_json::json!({ "answer": answer }).to_string();
        self
    }
}

impl Shard {
    /// A split that [`Dataset::generate`] knows.
    pub fn generated(split: &str) -> Shard {
        Shard { uri: split.into(), split: split.into(), format: "generated".into(), bytes: None }
    }
}

#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

fn parse<T: Dataset>(config: &str) -> Result<T> {
    enter();
    let dataset = T::parse(config)?;
    dataset.check()?;
    Ok(dataset)
}

impl<T: Dataset> Guest for Exported<T> {
    fn list_shards(config: String) -> Result<Vec<Shard>> {
        Ok(parse::<T>(&config)?.shards())
    }

    fn map_rows(config: String, rows: Vec<String>) -> Result<Vec<Sample>> {
        let dataset = parse::<T>(&config)?;
        let mut samples = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate() {
            let row: Json = serde_json::from_str(row)
                .map_err(|e| Error::new(ErrorCode::Other, format!("it is not JSON: {e}")).at(format!("row {number}")))?;
            let mapped = dataset.map_row(&row).map_err(|e| e.at(format!("row {number}")))?;
            samples.extend(mapped.into_iter().map(|sample| Sample { id: number as u64, ..sample }));
        }
        Ok(samples)
    }

    fn generate(config: String, split: String, first: u64, count: u32) -> Result<Vec<Sample>> {
        parse::<T>(&config)?.generate(&split, first, count)
    }
}
