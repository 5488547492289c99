//! What a request is given does not depend on its neighbours, and requests come, go and end as they say.

use std::collections::BTreeMap;
use std::sync::Arc;

use swift_runtime::Precision;
use swift_serve::{Batching, CacheType, Engine, EngineOptions, Request, RequestId, Sampling, Stop};
use swift_tests::{Lab, Loaded, SMOLLM2, asset, workspace};
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
        Bench::of(&workspace().join("host/cli/assets/swift-tiny.gguf"))
    }

    fn of(checkpoint: &std::path::Path) -> Bench {
        let lab = Lab::default();
        let loaded = lab.open(checkpoint, None);
        Bench { lab, loaded }
    }

    fn engine(&mut self, batching: Batching, chunk: usize) -> Engine {
        self.engine_with(EngineOptions { chunk, batching, ..EngineOptions::new(12, 96) })
    }

    fn engine_with(&mut self, options: EngineOptions) -> Engine {
        let tokenizer = text_of(self.loaded.model.checkpoint()).unwrap().tokenizer;
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
fn requests_bend_their_own_logits_only() {
    let mut bench = Bench::new();
    let mut engine = bench.engine(Batching::Throughput, 64);
    let plain = Request::new(prompt(3, 20), 24);
    let want = bench.answer(&mut engine, plain.clone());
    let bent = |change: fn(&mut Sampling)| {
        let mut request = plain.clone();
        change(&mut request.sampling);
        request
    };
    let requests = [
        bent(|s| s.logit_bias = vec![(77, 1e4)]),
        plain.clone(),
        bent(|s| s.presence_penalty = 1e4),
        bent(|s| s.frequency_penalty = 1e4),
        bent(|s| s.repetition_penalty = 1e4),
        bent(|s| (s.temperature, s.min_p) = (2.0, 1.0)),
    ];
    let ids = requests.map(|request| engine.submit(request).unwrap());
    let answers = bench.drain(&mut engine);
    let tokens = |i: usize| -> Vec<i32> { answers[&(ids[i], 0)].tokens.iter().map(|t| t.0).collect() };
    assert_eq!(tokens(0), [77; 24]);
    assert_eq!(answers[&(ids[1], 0)], want);
    // What was said is not said again; the prompt counts for one of them alone.
    for i in 2..5 {
        let said: std::collections::BTreeSet<i32> = tokens(i).into_iter().collect();
        assert_eq!(said.len(), 24, "{:?}", tokens(i));
    }
    assert!(tokens(4).iter().all(|token| !plain.prompt.contains(token)));
    // Nothing but the likeliest is as likely as the likeliest.
    assert_eq!(tokens(5), tokens(1));
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

/// Requests of equal and of partly equal beginnings, one of them of several answers, and some that grow from one page to two.
fn relatives() -> Vec<Request> {
    let mut requests = vec![request(1, 150, 12), request(1, 150, 12), request(2, 40, 30), request(1, 200, 9)];
    requests[1].choices = 3;
    // The first 130 tokens of the first, then others.
    let mut branch = request(1, 130, 10);
    branch.prompt.extend(prompt(9, 50));
    requests.push(branch);
    requests.extend((20..24).map(|i| request(i, 60, 30)));
    requests
}

/// What an engine answers to [`relatives`], and then to a request that goes on where the first answer ended.
fn answers(bench: &mut Bench, options: EngineOptions) -> (Vec<Answer>, swift_serve::Counters) {
    let mut engine = bench.engine_with(options);
    let ids: Vec<RequestId> = relatives().into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let first = bench.drain(&mut engine);
    let mut next = request(3, 0, 10);
    next.prompt = [prompt(1, 150), first[&(ids[0], 0)].tokens.iter().map(|t| t.0).collect(), prompt(5, 20)].concat();
    let last = bench.answer(&mut engine, next);
    (first.into_values().chain([last]).collect(), engine.counters())
}

#[test]
fn shared_beginnings_change_no_bit() {
    let mut bench = Bench::new();
    let options = EngineOptions { batching: Batching::Reproducible, chunk: 64, ..EngineOptions::new(3, 256) };
    let (alone, without) = answers(&mut bench, EngineOptions { share_prefixes: false, ..options });
    let (shared, with) = answers(&mut bench, options);
    assert_eq!(shared, alone);
    assert_eq!(without.reused, 0);
    assert!(with.reused >= 5 * 128 && with.computed + with.reused == without.computed, "{with:?} {without:?}");
}

#[test]
fn short_of_pages_sequences_wait_give_way_and_change_no_bit() {
    let mut bench = Bench::new();
    let options = EngineOptions { batching: Batching::Reproducible, chunk: 64, ..EngineOptions::new(5, 256) };
    let (plenty, counters) = answers(&mut bench, options);
    assert_eq!(counters.preempted, 0);
    // Room for one sequence of full length, the least there may be.
    for share_prefixes in [true, false] {
        let (short, counters) = answers(&mut bench, EngineOptions { cache_tokens: Some(256), share_prefixes, ..options });
        assert_eq!(short, plenty);
        assert!(counters.preempted > 0, "{counters:?}");
    }
    let Loaded { model, store } = &mut bench.loaded;
    let options = EngineOptions { cache_tokens: Some(255 - 64), ..options };
    let message = Engine::new(model, &bench.lab.device, store, options, None).err().unwrap().to_string();
    assert!(message.contains("191") && message.contains("256"), "{message}");
}

#[test]
fn in_whole_numbers_rows_do_not_depend_on_their_runs() {
    // All weights of this model are quantized, so that batches, chunks, sharing and preemption change no bit in any mode.
    let Some(path) = asset(SMOLLM2) else { return };
    let mut bench = Bench::of(&path);
    for cache in [CacheType::F32, CacheType::F16, CacheType::Int8] {
        let options = EngineOptions { precision: Precision::Int8, cache, ..EngineOptions::new(8, 256) };
        let (want, _) = answers(&mut bench, EngineOptions { slots: 1, share_prefixes: false, ..options });
        let (shared, counters) = answers(&mut bench, options);
        assert_eq!(shared, want, "{cache:?}");
        assert!(counters.reused >= 5 * 128, "{counters:?}");
        let (short, counters) = answers(&mut bench, EngineOptions { cache_tokens: Some(256), chunk: 48, ..options });
        assert_eq!(short, want, "{cache:?}");
        assert!(counters.preempted > 0, "{counters:?}");
    }
}

#[test]
fn engines_of_one_store_notice_each_other() {
    let mut bench = Bench::new();
    let options = EngineOptions { batching: Batching::Reproducible, chunk: 64, ..EngineOptions::new(2, 256) };
    let (mut one, mut other) = (bench.engine_with(options), bench.engine_with(options));
    let want = bench.answer(&mut one, request(1, 200, 12));
    let id = one.submit(request(1, 200, 12)).unwrap();
    let begun: Vec<_> = (0..3).flat_map(|_| one.step(&mut bench.loaded.store).unwrap()).filter_map(|u| u.token).collect();
    // The other engine writes over the pages of the answer in progress, and of what was kept.
    bench.answer(&mut other, request(8, 250, 5));
    let rest = bench.drain(&mut one).remove(&(id, 0)).unwrap();
    assert_eq!(rest.tokens, want.tokens[begun.len()..]);
}
