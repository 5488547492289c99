//! Scores of answers beside the libraries that ms-swift uses.

use swift_data::Scores;
use swift_tests::{golden, json};

#[test]
fn scores_are_those_of_rouge_and_nltk() {
    let rows = json(golden("metrics.json"));
    for row in rows.as_array().unwrap() {
        let [answer, reference] = ["answer", "reference"].map(|key| row[key].as_str().unwrap());
        let Scores { rouge_1, rouge_2, rouge_l, bleu_4 } = Scores::of(answer, reference).unwrap();
        for (name, got) in [("rouge-1", rouge_1), ("rouge-2", rouge_2), ("rouge-l", rouge_l), ("bleu-4", bleu_4)] {
            let want = row[name].as_f64().unwrap();
            assert!((got - want).abs() < 1e-12, "{name} of {answer:?} for {reference:?}: {got} instead of {want}");
        }
    }
}
