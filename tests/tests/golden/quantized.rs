//! Real models in mixed block formats: greedy tokens beside an independent decode of the same files in f32 numpy (figures of
//! `assets.md`, prompt "The capital of France is"), in exact arithmetic and as `infer` computes.

use std::collections::HashSet;
use std::ops::ControlFlow;

use swift_runtime::Precision;
use swift_serve::{CacheType, EngineOptions, Generator, Sampling, Scorer};
use swift_tests::{Lab, SMOLLM2, asset};

/// In 8 bits, as many tokens are compared as are `sure`.
fn continues(file: &str, prompt: &[i32], want: &[i32], sure: usize) {
    let Some(path) = asset(file) else { return };
    let lab = Lab::default();
    let mut loaded = lab.open(&path, None);
    let exact = EngineOptions::new(1, 64);
    let quick = EngineOptions { precision: Precision::Int8, cache: CacheType::F16, ..exact };
    for (options, count) in [(exact, want.len()), (quick, sure)] {
        let want = &want[..count];
        let mut generator = Generator::with_options(&mut loaded.model, &lab.device, &mut loaded.store, options).unwrap();
        let go_on = |_, _| ControlFlow::Continue(());
        let (prompts, greedy) = ([prompt.to_vec()], Sampling::default());
        let made = generator.generate(&mut loaded.store, &prompts, want.len(), &HashSet::new(), &greedy, go_on).unwrap();
        assert_eq!(made[0].tokens, want, "{file}, {:?}", options.precision);
    }
}

#[test]
fn smollm2_in_q4_1_goes_on_as_in_f32() {
    // The sixth token is 0.2 logits ahead of the next, which is less than rounding activations changes.
    continues(SMOLLM2, &[504, 3575, 282, 4649, 314], &[7042, 30, 198, 198, 504, 2988], 5);
}

#[test]
fn qwen2_5_coder_in_q4_k_m_goes_on_as_in_f32() {
    let file = "qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf";
    continues(file, &[785, 6722, 315, 9625, 374], &[12095, 13, 12095, 374, 7407, 304], 6);
}

#[test]
fn gemma_3_in_q4_k_m_goes_on_as_in_f32() {
    continues("gemma-3-270m.Q4_K_M.gguf", &[2, 818, 5279, 529, 7001, 563], &[506, 5279, 529, 506, 2891, 529], 6);
}

#[test]
fn activations_in_8_bits_cost_less_than_half_a_percent_of_perplexity() {
    let (Some(path), Some(text)) = (asset(SMOLLM2), asset("llamafactory-data/wiki_demo.txt")) else { return };
    let lab = Lab::default();
    let mut loaded = lab.open(&path, None);
    let text = std::fs::read_to_string(text).unwrap();
    let tokenizer = swift_train::text_of(loaded.model.checkpoint()).unwrap().tokenizer;
    let end = text.char_indices().nth(9000).map_or(text.len(), |(at, _)| at);
    let tokens: Vec<i32> = tokenizer.encode(&text[..end], true).unwrap().into_iter().map(|id| id as i32).collect();
    let nll = [Precision::Exact, Precision::Int8].map(|precision| {
        let mut scorer = Scorer::new(&mut loaded.model, &lab.device, &mut loaded.store, precision).unwrap();
        let losses = tokens.chunks_exact(256).flat_map(|part| scorer.score(&mut loaded.store, part, 1).unwrap());
        let losses: Vec<f64> = losses.map(f64::from).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    });
    println!("{} tokens: {:.4} exact, {:.4} in 8 bits", tokens.len(), nll[0].exp(), nll[1].exp());
    assert!(nll[0].exp() < 40.0, "{nll:?}");
    assert!((nll[1] - nll[0]).exp() < 1.005, "{nll:?}");
}
