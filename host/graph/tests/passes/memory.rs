//! What the plan of a training graph costs.

use std::time::Instant;

use swift_graph::op::{self, UnaryOp};
use swift_graph::passes::{self, Options, Recompute};
use swift_graph::plan::{Place, Plan, plan};
use swift_graph::{Bindings, DType, Dim, Graph, ParamInfo, Shape, SymbolId, Target, Type};

use crate::arena::simulate;
use crate::llama::{Adapter, Sizes, TINY, training};
use crate::{assert_same, environment, run_all};

/// SmolLM2-135M.
const SMOL: Sizes = Sizes { layers: 30, d: 576, heads: 9, kv: 3, ffn: 1536, vocab: 49152, rank: 8 };

fn planned(sizes: &Sizes, adapter: Adapter, recompute: Recompute) -> Plan {
    let g = training(sizes, adapter, 0.0, true);
    let (g, _) = passes::fold_frozen(&g).unwrap();
    let g = passes::optimize(g, &Options { recompute }).unwrap();
    plan(g, &|_| true).unwrap()
}

#[test]
fn planned_training_computes_what_the_interpreter_does() {
    for adapter in [Adapter::Full, Adapter::Lora, Adapter::Dora] {
        let plain = training(&TINY, adapter, 0.25, true);
        let env = environment(&plain, 8);
        let want = run_all(&plain, &env);
        for recompute in [Recompute::None, Recompute::Cheap, Recompute::Layers] {
            let g = passes::optimize(plain.clone(), &Options { recompute }).unwrap();
            let p = plan(g, &|_| true).unwrap();
            assert_same(&want, &simulate(&p, &env), &format!("{recompute:?}"));
        }
    }
}

#[test]
fn recomputation_lowers_the_peak() {
    let bindings = Bindings::new().with(SymbolId::TOKENS, 1024).with(SymbolId::SEQUENCES, 2);
    for adapter in [Adapter::Full, Adapter::Lora, Adapter::Dora] {
        let peaks = [Recompute::None, Recompute::Cheap, Recompute::Layers].map(|r| {
            let p = planned(&SMOL, adapter, r);
            let usage = p.usage(&bindings, &|_| Ok(0)).unwrap();
            assert!(usage.at_peak.iter().all(|r| r.bytes > 0) && usage.live_peak >= usage.kept_for_backward);
            assert!(usage.arena as f64 <= 1.05 * usage.live_peak as f64, "fragmentation: {} of {}", usage.arena, usage.live_peak);
            usage.arena
        });
        assert!(peaks[1] < peaks[0] && peaks[2] < peaks[1], "{peaks:?}");
    }
}

#[test]
fn layout_is_fast_enough_to_run_for_every_batch() {
    let p = planned(&SMOL, Adapter::Dora, Recompute::Cheap);
    let start = Instant::now();
    for n in 1000..1010 {
        let bindings = Bindings::new().with(SymbolId::TOKENS, n).with(SymbolId::SEQUENCES, 2);
        assert!(p.peak_bytes(&bindings, &|_| Ok(4096)).unwrap() > 0);
    }
    // A loose bound: shared machines are noisy. It is about 1 ms where nothing else runs.
    assert!(start.elapsed().as_millis() < 2000, "{:?} for {} buffers", start.elapsed() / 10, p.buffers.len());
}

#[test]
fn an_optimizer_step_runs_in_place() {
    let mut g = Graph::default();
    let ty = Type::f32(Shape::fixed(&[8, 8]));
    let w = g.declare_param(ParamInfo { name: "w".into(), shape: vec![8, 8], trainable: true }).unwrap();
    let m = g.declare_state("m", ty.clone()).unwrap();
    let grad = g.declare_state("grad", ty).unwrap();
    let lr = g.input("lr", Type::scalar(DType::F32)).unwrap();
    let node = g.param(w).unwrap();
    let weight = g.push(op::Read, &[node]).unwrap();
    let (old, d_w) = (g.read_state(m).unwrap(), g.read_state(grad).unwrap());
    let a = g.scale(old, 0.9).unwrap();
    let b = g.scale(d_w, 0.1).unwrap();
    let new = g.add(a, b).unwrap();
    let root = g.unary(UnaryOp::Abs, new).unwrap();
    let step = g.div(new, root).unwrap();
    let step = g.mul(step, lr).unwrap();
    let weight = g.sub(weight, step).unwrap();
    let zero = g.full(Shape::fixed(&[8, 8]), 0.0, DType::F32).unwrap();
    g.write(Target::State(m), new, false).unwrap();
    g.write(Target::Param(w), weight, false).unwrap();
    g.write(Target::State(grad), zero, false).unwrap();
    let env = environment(&g, 9);
    let want = run_all(&g, &env);
    let g = passes::optimize(g, &Options::default()).unwrap();
    let p = plan(g, &|_| true).unwrap();
    assert_same(&want, &simulate(&p, &env), "optimizer");
    assert_eq!((p.launches.len(), p.buffers.len()), (1, 0), "{:?}", p.launches);
    assert_eq!(p.launches[0].effects.len(), 1, "only the gradient is cleared by a copy");
    assert!(p.places.contains(&Place::Param(w)) && p.places.contains(&Place::State(m)));
}

#[test]
fn states_can_change_places() {
    let mut g = Graph::default();
    let ty = Type::f32(vec![Dim::fixed(3)]);
    let (a, b) = (g.declare_state("a", ty.clone()).unwrap(), g.declare_state("b", ty).unwrap());
    let (x, y) = (g.read_state(a).unwrap(), g.read_state(b).unwrap());
    g.write(Target::State(a), y, false).unwrap();
    g.write(Target::State(b), x, false).unwrap();
    g.outputs.push(("old a".into(), x));
    let env = environment(&g, 10);
    let p = plan(g.clone(), &|_| true).unwrap();
    assert_same(&run_all(&g, &env), &simulate(&p, &env), "swap");
}

#[test]
fn clearing_a_large_state_is_one_launch_and_no_memory() {
    let mut g = Graph::default();
    let ty = Type::f32(Shape::fixed(&[128, 64]));
    let grad = g.declare_state("grad", ty.clone()).unwrap();
    let zero = g.full(ty.shape.clone(), 0.0, DType::F32).unwrap();
    g.write(Target::State(grad), zero, false).unwrap();
    let old = g.read_state(grad).unwrap();
    let square = g.mul(old, old).unwrap();
    let norm = g.sum_all(square).unwrap();
    g.outputs.push(("norm".into(), norm));
    let env = environment(&g, 11);
    let want = run_all(&g, &env);
    let p = plan(passes::optimize(g, &Options::default()).unwrap(), &|_| true).unwrap();
    assert_same(&want, &simulate(&p, &env), "clear");
    assert!(p.launches.iter().all(|l| l.effects.is_empty()), "{:?}", p.launches);
    assert_eq!(p.buffers.len(), 2, "the square and its sum");
}

#[test]
fn decoding_over_caches_survives_passes_and_plan() {
    let mut g = Graph::default();
    let n = Dim::symbol(SymbolId::TOKENS);
    let rows = |heads: u64| Type::f32(vec![Dim::symbol(SymbolId::TOKENS), Dim::fixed(heads), Dim::fixed(4)]);
    let cache = Type::f32(Shape::fixed(&[64, 64, 1, 4]));
    let positions = g.input("positions", Type::new(DType::S32, vec![n.clone()])).unwrap();
    let segments = g.input("segments", Type::new(DType::S32, vec![n])).unwrap();
    let pages = g.input("pages", Type::new(DType::S32, Shape::fixed(&[3, 1]))).unwrap();
    let mut x = g.input("x", rows(2)).unwrap();
    let k = g.input("k", rows(1)).unwrap();
    let spec = op::AttentionSpec::causal(0.5);
    for layer in 0..2 {
        let k_cache = g.declare_state(&format!("cache.k.{layer}"), cache.clone()).unwrap();
        let v_cache = g.declare_state(&format!("cache.v.{layer}"), cache.clone()).unwrap();
        let op = op::CachedAttention { spec: spec.clone(), k_cache, v_cache };
        let y = g.push(op, &[x, k, k, segments, positions, pages]).unwrap();
        x = g.add(x, y).unwrap();
    }
    g.outputs.push(("x".into(), x));
    let env = environment(&g, 12);
    let want = run_all(&g, &env);
    let p = plan(passes::optimize(g, &Options::default()).unwrap(), &|_| true).unwrap();
    assert_same(&want, &simulate(&p, &env), "caches");
}
