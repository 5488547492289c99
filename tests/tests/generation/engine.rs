//! What a request is given does not depend on its neighbours, and requests come, go and end as they say.

use std::collections::BTreeMap;
use std::sync::Arc;

use swift_serve::{Batching, Engine, EngineOptions, Request, RequestId, Sampling, Stop};
use swift_tests::{Lab, Loaded, workspace};
use swift_train::text_of;

/// One answer: tokens with the bits of their log-probabilities, text, and how it ended.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<(i32, u32)>,
    text: String,
    stop: Option<Stop>,
}

struct Bench {
    lab: Lab,
    loaded: Loaded,
}

impl Bench {
    fn new() -> Bench {
        let lab = Lab::default();
        let loaded = lab.open(&workspace().join("host/cli/assets/swift-tiny.gguf"), None);
        Bench { lab, loaded }
    }

    /// An engine of its own cache; every engine of one store must have the same.
    fn engine(&mut self, batching: Batching, chunk: usize) -> Engine {
        let tokenizer = text_of(self.loaded.model.checkpoint()).unwrap().tokenizer;
        let options = EngineOptions { slots: 12, capacity: 96, chunk, batching };
        let Loaded { model, store } = &mut self.loaded;
        Engine::new(model, &self.lab.device, store, options, Some(Arc::clone(&tokenizer))).unwrap()
    }

    fn drain(&mut self, engine: &mut Engine) -> BTreeMap<(RequestId, usize), Answer> {
        let mut answers: BTreeMap<(RequestId, usize), Answer> = BTreeMap::new();
        while !engine.is_idle() {
            for update in engine.step(&mut self.loaded.store).unwrap() {
                let answer = answers.entry((update.request, update.choice)).or_default();
                answer.text.push_str(&update.text);
                assert!(answer.stop.is_none(), "an update after the last");
                answer.stop = update.finished;
                if let Some(token) = update.token {
                    answer.tokens.push((token.id, token.logprobs.map_or(0, |l| l.0.to_bits())));
                }
            }
        }
        answers
    }

    fn answer(&mut self, engine: &mut Engine, request: Request) -> Answer {
        let id = engine.submit(request).unwrap();
        self.drain(engine).remove(&(id, 0)).unwrap()
    }
}

fn prompt(seed: usize, length: usize) -> Vec<i32> {
    (0..length).map(|i| (40 + (seed * 131 + i * 37) % 400) as i32).collect()
}

fn request(seed: usize, length: usize, new: usize) -> Request {
    let mut request = Request::new(prompt(seed, length), new);
    request.sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: seed as u64, ..Sampling::default() };
    request.logprobs = Some(2);
    request
}

#[test]
fn answers_are_bitwise_the_same_alone_and_in_company() {
    let mut bench = Bench::new();
    let mut engine = bench.engine(Batching::Reproducible, 16);
    let ours = [request(1, 5, 20), request(2, 16, 12), request(3, 41, 9), request(4, 1, 30)];
    let alone: Vec<Answer> = ours.iter().map(|r| bench.answer(&mut engine, r.clone())).collect();
    assert!(alone.iter().any(|a| a.tokens.len() > 5), "{alone:?}");
    // Eighteen requests over twelve slots, ours among them, joining at different times.
    let mut ids = Vec::new();
    for i in 0..14 {
        engine.submit(request(50 + i, 3 + 5 * i, 4 + i)).unwrap();
        if i % 4 == 2 {
            ids.push(engine.submit(ours[ids.len()].clone()).unwrap());
        }
    }
    engine.step(&mut bench.loaded.store).unwrap();
    let stray = engine.submit(request(99, 20, 40)).unwrap();
    ids.push(engine.submit(ours[3].clone()).unwrap());
    let company = {
        assert!(engine.cancel(stray) && !engine.cancel(stray));
        bench.drain(&mut engine)
    };
    for (id, want) in ids.iter().zip(&alone) {
        // The first step above may have given the earliest of them a token that is not in `company`.
        let got = &company[&(*id, 0)];
        let skipped = want.tokens.len() - got.tokens.len();
        assert!(skipped <= 1);
        assert_eq!(got.tokens, want.tokens[skipped..]);
        assert_eq!(got.stop, want.stop);
    }
}

#[test]
fn chunks_and_batches_change_no_greedy_answer() {
    let mut bench = Bench::new();
    let mut whole = bench.engine(Batching::Throughput, 512);
    let want: Vec<Answer> = (0..4).map(|i| bench.answer(&mut whole, Request::new(prompt(i, 30 + i), 10))).collect();
    let mut engine = bench.engine(Batching::Throughput, 7);
    let ids: Vec<RequestId> = (0..4).map(|i| engine.submit(Request::new(prompt(i, 30 + i), 10)).unwrap()).collect();
    let got = bench.drain(&mut engine);
    for (id, want) in ids.iter().zip(&want) {
        assert_eq!(&got[&(*id, 0)], want);
    }
}

#[test]
fn choices_differ_and_repeat_with_their_seed() {
    let mut bench = Bench::new();
    let mut engine = bench.engine(Batching::Reproducible, 64);
    let mut both = Vec::new();
    for _ in 0..2 {
        let mut r = request(7, 12, 10);
        (r.choices, r.sampling.temperature) = (3, 1.5);
        let id = engine.submit(r).unwrap();
        let answers = bench.drain(&mut engine);
        both.push((0..3).map(|c| answers[&(id, c)].clone()).collect::<Vec<_>>());
    }
    assert_eq!(both[0], both[1]);
    assert!(both[0][0].tokens != both[0][1].tokens && both[0][1].tokens != both[0][2].tokens, "{both:?}");
}

#[test]
fn answers_end_where_they_should() {
    let mut bench = Bench::new();
    let mut engine = bench.engine(Batching::Throughput, 64);
    let whole = bench.answer(&mut engine, Request::new(prompt(3, 20), 24));
    assert!(matches!(whole.stop, Some(Stop::Length)) && whole.tokens.len() == 24, "{whole:?}");

    let mut stopped = Request::new(prompt(3, 20), 24);
    stopped.stop_tokens = vec![whole.tokens[9].0];
    let first = whole.tokens.iter().position(|t| t.0 == whole.tokens[9].0).unwrap();
    let answer = bench.answer(&mut engine, stopped);
    assert_eq!((answer.stop, answer.tokens.len()), (Some(Stop::Token), first));

    // A stop string from the middle of the text, which begins and ends inside of tokens.
    let letters: Vec<char> = whole.text.chars().collect();
    let word: String = letters[letters.len() / 2..].iter().take(3).collect();
    let mut cut = Request::new(prompt(3, 20), 24);
    cut.stop_strings = vec![word.clone()];
    let answer = bench.answer(&mut engine, cut);
    assert_eq!(answer.stop, Some(Stop::Text), "{word:?} in {:?}", whole.text);
    assert_eq!(answer.text, whole.text[..whole.text.find(&word).unwrap()]);

    // The cache holds 96 tokens; the last drawn one needs no room.
    let full = bench.answer(&mut engine, Request::new(prompt(3, 90), 24));
    assert_eq!((full.stop, full.tokens.len()), (Some(Stop::Length), 7));
}

#[test]
fn impossible_requests_are_refused() {
    let mut bench = Bench::new();
    let mut engine = bench.engine(Batching::Throughput, 64);
    let mut refused = |request: Request, word: &str| {
        let message = engine.submit(request).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    refused(Request::new(Vec::new(), 4), "0 tokens");
    refused(Request::new(prompt(1, 96), 4), "96");
    refused(Request::new(prompt(1, 4), 0), "max_new_tokens");
    let mut odd = Request::new(prompt(1, 4), 4);
    odd.sampling.top_p = 1.5;
    refused(odd, "top_p");
}
