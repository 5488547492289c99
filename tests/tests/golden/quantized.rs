//! Real models in mixed block formats: greedy tokens beside an independent decode of the same files in f32 numpy (figures of
//! `assets.md`, prompt "The capital of France is").

use std::collections::HashSet;
use std::ops::ControlFlow;

use swift_serve::{Generator, Sampling};
use swift_tests::{Lab, asset};

fn continues(file: &str, prompt: &[i32], want: &[i32]) {
    let Some(path) = asset(file) else { return };
    let lab = Lab::default();
    let mut loaded = lab.open(&path, None);
    let mut generator = Generator::new(&mut loaded.model, &lab.device, &mut loaded.store, 1, 64).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    let prompts = [prompt.to_vec()];
    let made = generator.generate(&mut loaded.store, &prompts, want.len(), &HashSet::new(), &Sampling::default(), go_on).unwrap();
    assert_eq!(made[0].tokens, want, "{file}");
}

#[test]
fn qwen2_5_coder_in_q4_k_m_goes_on_as_in_f32() {
    let file = "qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf";
    continues(file, &[785, 6722, 315, 9625, 374], &[12095, 13, 12095, 374, 7407, 304]);
}

#[test]
fn gemma_3_in_q4_k_m_goes_on_as_in_f32() {
    continues("gemma-3-270m.Q4_K_M.gguf", &[2, 818, 5279, 529, 7001, 563], &[506, 5279, 529, 506, 2891, 529]);
}
