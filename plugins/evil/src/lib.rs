//! A plugin that does everything wrong, one thing per word of its configuration. With the configuration `good` it behaves.
//!
//! Written against raw bindings, since the SDK makes most of this impossible to say. `host/plugin/tests/evil` drives it.

use std::cell::RefCell;

wit_bindgen::generate!({
    inline: "
        package evil:plugin;
        world evil {
            include swift:plugin/base@0.1.0;
            export swift:plugin/model@0.1.0;
            export swift:plugin/peft@0.1.0;
            export swift:plugin/loss@0.1.0;
            export swift:plugin/optimizer@0.1.0;
            export swift:plugin/dataset@0.1.0;
            export swift:plugin/sampler@0.1.0;
        }
    ",
    path: ["../../wit/tensor-0.1.0", "../../wit/plugin-0.1.0"],
    world: "evil:plugin/evil",
    generate_all,
});

use exports::swift::plugin::{about, dataset, loss, model, optimizer, peft, sampler};
use swift::plugin::decl::{Init, ParamDecl, ParamInfo, SiteInfo};
use swift::plugin::env;
use swift::plugin::sample_types::{Part, Sample, Turn};
use swift::plugin::trace_host::{Batch, Session, Site, StepIo};
use swift::tensor::graph::{
    AttnSpec, BinaryOp, Builder, ConvSpec, Dim, DimOp, Dtype, MaskSpec, ReduceOp, RopeLayout, RopeSpec, UnaryOp, Value,
};
use swift::tensor::lm_head::CeSpec;
use swift::tensor::types::{Error, ErrorCode};

struct Evil;
export!(Evil);

thread_local! {
    /// What `peft.plan` was configured with.
    static CASE: RefCell<String> = const { RefCell::new(String::new()) };
    /// A value kept between calls, which is not allowed.
    static KEPT: RefCell<Option<Value>> = const { RefCell::new(None) };
}

fn error(message: &str) -> Error {
    Error { code: ErrorCode::Other, message: message.into(), where_at: None, hint: None }
}

fn shout(words: &str) -> ! {
    env::log(env::Level::Warn, words);
    std::process::abort()
}

/// What can go wrong anywhere. `hook` is the function that was called.
fn misbehave(case: &str, hook: &str) {
    match case {
        "spin" => loop {
            std::hint::black_box(0);
        },
        "recurse" => {
            fn deeper(n: u64) -> u64 {
                if std::hint::black_box(n) == 0 { 0 } else { deeper(n + 1).wrapping_mul(n) + 1 }
            }
            std::hint::black_box(deeper(1));
        }
        "memory" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(std::hint::black_box(vec![1; 1 << 20]));
            }
        }
        "log-flood" => {
            for i in 0..100_000 {
                env::log(env::Level::Info, &format!("\x1b[2J line {i} \u{202e}"));
            }
        }
        "random-flood" => drop(env::random("x", u32::MAX)),
        "host-calls" => loop {
            env::log(env::Level::Debug, "");
        },
        other if other == format!("trap:{hook}") => shout(&format!("panicked at {hook}\x1b[31m")),
        other if other == format!("error:{hook}") => {}
        _ => {}
    }
}

fn decl(name: &str, shape: &[u64]) -> ParamDecl {
    ParamDecl { name: name.into(), shape: shape.to_vec(), init: Init::Zeros, tied_to: None, tags: vec![] }
}

impl about::Guest for Evil {
    fn get() -> about::Info {
        let item = |kind: &str| about::Item {
            kind: kind.into(),
            id: "evil".into(),
            summary: "misbehaves".into(),
            config_schema: String::new(),
        };
        about::Info {
            name: "evil\x1b[31m".into(),
            version: "0.1.0".into(),
            license: "Apache-2.0".into(),
            items: ["model", "peft", "loss", "optimizer", "dataset", "sampler"].map(item).to_vec(),
        }
    }
}

impl model::Guest for Evil {
    fn plan_for(config: String) -> Result<model::Plan, Error> {
        misbehave(&config, "model.plan-for");
        let mut params = vec![decl("w", &[8, 8]), decl("embed", &[16, 8]), decl("norm", &[8])];
        if config == "conv" {
            params.extend([decl("filters", &[8, 8, 3]), decl("shifts", &[8])]);
        }
        let mut bindings = vec![];
        let mut caches = vec![model::CacheDecl { layer: 0, kv_heads: 2, head_dim: 4, window: None, latent_dim: None }];
        match config.as_str() {
            "error:model.plan-for" => return Err(error("cannot read the configuration\x1b[31m\nat all")),
            "garbage-names" => params.push(decl("bad\u{7}name", &[1])),
            "garbage-empty-name" => params.push(decl("", &[1])),
            "garbage-twice" => params.push(decl("w", &[8, 8])),
            "garbage-shape" => params.push(decl("huge", &[u64::MAX, u64::MAX])),
            "garbage-zero" => params.push(decl("none", &[0])),
            "garbage-nan" => params.push(ParamDecl { init: Init::Normal(f32::NAN), ..decl("nan", &[1]) }),
            "garbage-tie" => params.push(ParamDecl { tied_to: Some("nowhere".into()), ..decl("tied", &[1]) }),
            "garbage-binding" => bindings.push(model::Binding { param: "x".into(), source: model::Recipe::Whole("y".into()) }),
            "garbage-cache" => caches.push(caches[0]),
            "garbage-long-name" => params.push(decl(&"n".repeat(100_000), &[1])),
            "garbage-flood" => params.extend((0..300_000).map(|i| decl(&i.to_string(), &[1]))),
            "garbage-bytes" => params.push(decl(&"n".repeat(400 << 20), &[1])),
            _ => {}
        }
        Ok(model::Plan { params, bindings, caches, inputs: vec!["ids".into()] })
    }

    fn trace(s: &Session, config: String) -> Result<(), Error> {
        misbehave(&config, "model.trace");
        let g = s.g();
        let ids = s.input("ids")?.ok_or_else(|| error("no ids"))?;
        g.push_scope("layers.3");
        let x = s.embed("embed", &s.param("embed")?, &ids)?;
        let x = g.rms_norm(&x, Some(&s.param("norm")?), 1e-5, false)?;
        let mut y = s.linear("layers.3.proj", &s.param("w")?, None, &x)?;
        if config == "conv" {
            // Causal, along the tokens of all sequences.
            let n = s.dim("tokens")?;
            let image = g.reshape(&g.permute(&y, &[1, 0])?, &[Dim::Fixed(1), Dim::Fixed(8), n])?;
            let image = s.conv("layers.3.conv", &s.param("filters")?, Some(&s.param("shifts")?), &image, &along(1, 2))?;
            y = g.permute(&g.reshape(&image, &[Dim::Fixed(8), n])?, &[1, 0])?;
        }
        attack(&g, s, &config, &x, &ids)?;
        g.pop_scope();
        if config == "no-head" {
            return Ok(());
        }
        s.set_head(&y, &s.param("embed")?, None)
    }
}

/// A convolution over one axis, padded before.
fn along(stride: u32, pad: u32) -> ConvSpec {
    ConvSpec { stride: vec![stride], pad_lo: vec![pad], pad_hi: vec![0], dilation: vec![1], groups: 1 }
}

/// Attacks on the graph, in the middle of an honest model.
fn attack(g: &Builder, s: &Session, case: &str, x: &Value, ids: &Value) -> Result<(), Error> {
    let fixed = Dim::Fixed;
    match case {
        "nodes" => loop {
            drop(g.scalar(1.0, Dtype::F32));
        },
        "nodes-ignoring-errors" => loop {
            let _ = g.unary(UnaryOp::Exp, x);
        },
        "failing-forever" => loop {
            let _ = g.matmul(x, x, false);
        },
        "handles" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(x.dup());
            }
        }
        "scopes" => loop {
            g.push_scope("deeper");
        },
        "pop-scopes" => {
            for _ in 0..10 {
                g.pop_scope();
            }
        }
        "long-scope" => g.push_scope(&"s".repeat(1 << 20)),
        "constants" => loop {
            drop(g.constant(&[1 << 20], Dtype::F32, &vec![0; 4 << 20])?);
        },
        "constant-length" => drop(g.constant(&[3], Dtype::F32, &[0; 7])?),
        "constant-shape" => drop(g.constant(&[u64::MAX, 2], Dtype::F32, &[0; 8])?),
        "constant-range" => drop(g.constant(&[1], Dtype::S64, &i64::MAX.to_le_bytes())?),
        "hostcall-bytes" => drop(g.constant(&[1], Dtype::U8, &vec![0; 20 << 20])?),
        "overflow-full" => drop(g.full(&[fixed(u64::MAX), fixed(u64::MAX)], 0.0, Dtype::F32)?),
        "overflow-expand" => drop(g.expand(x, &[fixed(1 << 62), fixed(1 << 62), fixed(1), fixed(8)])?),
        "overflow-dims" => {
            let mut d = g.dim_symbol("evil", 1, None, 1)?;
            loop {
                d = g.dim_expr(DimOp::Mul, d, Dim::Fixed(1 << 40))?;
            }
        }
        "overflow-add" => drop(g.dim_expr(DimOp::Add, Dim::Fixed(u64::MAX), Dim::Fixed(u64::MAX))?),
        "divide-by-zero" => drop(g.dim_expr(DimOp::FloorDiv, Dim::Fixed(1), Dim::Fixed(0))?),
        "negative-dim" => drop(g.dim_expr(DimOp::Sub, Dim::Fixed(1), Dim::Fixed(2))?),
        "nested-dims" => {
            let n = s.dim("tokens")?;
            let mut d = n;
            loop {
                d = g.dim_expr(DimOp::Mod, d, s.dim("sequences")?)?;
            }
        }
        "symbols" => loop {
            let _ = g.dim_symbol("evil", 1, None, 1)?;
        },
        "empty-symbol" => drop(g.dim_symbol("evil", 9, Some(3), 0)?),
        "foreign-dim" => drop(g.full(&[Dim::Sym(4_000_000_000)], 0.0, Dtype::F32)?),
        "rank" => drop(g.full(&[fixed(1); 40], 0.0, Dtype::F32)?),
        "fan-in" => {
            let many = vec![x; 5000];
            drop(g.concat(&many, 0)?)
        }
        "axis" => drop(g.softmax(x, -3)?),
        "axes-twice" => drop(g.reduce(ReduceOp::Sum, x, &[0, 0], true)?),
        "permute" => drop(g.permute(x, &[0, 4_000_000_000])?),
        "reshape" => drop(g.reshape(x, &[fixed(7)])?),
        "slice" => drop(g.slice(x, 1, fixed(4), fixed(u64::MAX))?),
        "concat-nothing" => drop(g.concat(&[], 0)?),
        "matmul" => drop(g.matmul(x, x, false)?),
        "dtype" => drop(g.binary(BinaryOp::Add, x, ids)?),
        "linear" => drop(g.linear(&s.param("embed")?, Some(&s.param("w")?), x)?),
        "norm-eps" => drop(g.rms_norm(x, None, f32::NAN, false)?),
        "rope-nan" => {
            let spec = RopeSpec { inv_freq: vec![f32::NAN], layout: RopeLayout::Halves, attn_scale: 1.0, sections: vec![] };
            drop(g.rope(x, ids, &spec)?)
        }
        "attention" => {
            let mask = MaskSpec { causal: true, window: Some(0), chunk: None, sinks: 0, by_segment: true };
            drop(g.attention(x, x, x, AttnSpec { scale: f32::INFINITY, softcap: None, mask, dropout: 0.0 }, None, None)?)
        }
        "unsupported" => {
            if g.has_op("begin-region", 1) {
                return Err(error("has-op lies"));
            }
            drop(g.begin_region(&[])?)
        }
        "top-k" => drop(g.top_k(x, 9)?),
        "experts" => drop(g.grouped_linear(&s.param("w")?, x, ids)?),
        "conv-rank" => drop(g.conv(x, &s.param("w")?, None, &along(1, 0))?),
        "conv-stride" => drop(g.conv(x, &s.param("w")?, None, &along(0, 0))?),
        "conv-axes" => {
            let spec = ConvSpec { pad_lo: vec![0; 100_000], ..along(1, 0) };
            drop(g.conv(x, &s.param("w")?, None, &spec)?)
        }
        "unknown-op" => drop(g.call("launch-missiles", 1, &[x], &[])?),
        "foreign-param" => drop(s.param("other.weight")?),
        "site-twice" => drop(s.linear("layers.3.proj", &s.param("w")?, None, x)?),
        "sites" => {
            for i in 0.. {
                drop(s.linear(&format!("site.{i}"), &s.param("w")?, None, x)?);
            }
        }
        "outputs" => {
            for i in 0.. {
                s.set_output(&format!("output.{i}"), x)?;
            }
        }
        "head-shape" => s.set_head(x, &s.param("norm")?, None)?,
        "aux-shape" => s.aux_loss("aux", x, 1.0)?,
        "cache-undeclared" => drop(s.cache(77)),
        "leave-scopes-open" => {
            for _ in 0..5 {
                g.push_scope("open");
            }
        }
        "keep" => KEPT.with_borrow_mut(|k| *k = Some(x.dup())),
        "use-kept" => {
            KEPT.with_borrow(|k| k.as_ref().map(|v| g.unary(UnaryOp::Neg, v)).transpose())?;
        }
        _ => {}
    }
    Ok(())
}

impl peft::Guest for Evil {
    fn plan(config: String, sites: Vec<SiteInfo>) -> Result<peft::TunerPlan, Error> {
        misbehave(&config, "peft.plan");
        let plan = |id| peft::SitePlan { id, params: vec![decl("a", &[2, 8]), decl("b", &[8, 2])], train_base: false };
        let mut plans: Vec<_> = sites.iter().filter(|s| s.path == "layers.3.proj").map(|s| plan(s.id)).collect();
        match config.as_str() {
            "error:peft.plan" => return Err(error("no")),
            "foreign-site" => plans.push(plan(4_000_000)),
            "site-twice" => plans.push(plan(plans[0].id)),
            "embedding-params" => plans.extend(sites.iter().filter(|s| s.path == "embed").map(|s| plan(s.id))),
            _ => {}
        }
        CASE.set(config);
        Ok(peft::TunerPlan { sites: plans, common: vec![] })
    }

    fn init_param(g: &Builder, s: &Site, _: String) -> Result<Option<Value>, Error> {
        let case = CASE.with_borrow(Clone::clone);
        misbehave(&case, "peft.init-param");
        if case == "wrong-type" { Ok(Some(s.weight(g)?)) } else { Ok(None) }
    }

    fn apply(g: &Builder, s: &Site) -> Result<Value, Error> {
        let case = CASE.with_borrow(Clone::clone);
        misbehave(&case, "peft.apply");
        let x = s.x();
        match case.as_str() {
            "wrong-type" => return s.weight(g),
            "foreign-param" => drop(s.param("model.layers.0.secret")?),
            "foreign-common" => drop(s.common("xtx")?),
            "keep" => KEPT.with_borrow_mut(|k| *k = Some(x.dup())),
            "use-kept" => {
                if let Some(kept) = KEPT.take() {
                    return Ok(kept);
                }
                KEPT.set(Some(x.dup()));
            }
            "leave-scopes-open" => g.push_scope("open"),
            _ => {}
        }
        let h = g.linear(&s.param("a")?, None, &x)?;
        let h = g.linear(&s.param("b")?, None, &h)?;
        g.binary(BinaryOp::Add, &s.base(g, &x)?, &h)
    }

    fn merge(g: &Builder, s: &Site) -> Result<Option<Value>, Error> {
        let case = CASE.with_borrow(Clone::clone);
        misbehave(&case, "peft.merge");
        if case == "wrong-type" { Ok(Some(s.x())) } else { Ok(Some(s.weight(g)?)) }
    }

    fn export_as(layout: String) -> Result<peft::ExportPlan, Error> {
        let case = CASE.with_borrow(Clone::clone);
        misbehave(&case, "peft.export-as");
        let entry = peft::ExportEntry { param: "a".into(), name: "a".into(), transpose: false };
        match layout.as_str() {
            "garbage-json" => Ok(peft::ExportPlan { entries: vec![], config_json: "{".into() }),
            "garbage-names" => Ok(peft::ExportPlan { entries: vec![entry.clone(), entry], config_json: "{}".into() }),
            _ => Ok(peft::ExportPlan { entries: vec![entry], config_json: "{}".into() }),
        }
    }
}

impl loss::Guest for Evil {
    fn needs_for(config: String) -> Result<loss::Needs, Error> {
        misbehave(&config, "loss.needs-for");
        let fields = if config == "garbage-fields" { vec!["a".into(), "a".into()] } else { vec![] };
        Ok(loss::Needs { fields, reference: false, teacher: false, paired: false, grants: vec![] })
    }

    fn trace(g: &Builder, b: &Batch, config: String) -> Result<loss::Output, Error> {
        misbehave(&config, "loss.trace");
        let mut spec = CeSpec { label_smoothing: 0.0, z_loss: 0.0, softcap: None, temperature: 1.0 };
        let targets = b.field("targets")?;
        match config.as_str() {
            "logits" => drop(b.policy().logits(g)?),
            "foreign-field" => drop(b.field("labels-of-others")?),
            "no-reference" => drop(b.reference().ok_or_else(|| error("there is no reference"))?),
            "temperature" => spec.temperature = f32::NAN,
            "divergence" => drop(b.policy().divergence(g, &b.policy(), 1.5, 1.0)?),
            "rows" => drop(b.policy().begin_rows(g, &[])?),
            "distribution" => {
                let p = b.policy();
                drop((p.entropy(g, spec)?, p.logit_mean(g)?, p.divergence(g, &b.policy(), 0.5, 1.0)?));
            }
            _ => {}
        }
        let ce = b.policy().cross_entropy(g, &targets, spec)?;
        let sum = g.reduce(ReduceOp::Sum, &ce, &[0], false)?;
        let metrics = match config.as_str() {
            "not-scalar" => return Ok(loss::Output { loss: ce, metrics: vec![] }),
            "garbage-metrics" => vec![("m".into(), sum.dup()), ("m".into(), sum.dup())],
            "metric-shape" => vec![("m".into(), ce)],
            _ => vec![],
        };
        Ok(loss::Output { loss: g.binary(BinaryOp::Div, &sum, &b.total("tokens")?)?, metrics })
    }
}

impl optimizer::Guest for Evil {
    fn plan_for(config: String, p: ParamInfo) -> Result<optimizer::Plan, Error> {
        misbehave(&config, "optimizer.plan-for");
        let slot = optimizer::SlotDecl { name: "m".into(), shape: p.shape, dtype: Dtype::F32, quantised: false };
        let program = optimizer::Program { name: "update".into(), every: 1 };
        let mut plan = optimizer::Plan { slots: vec![slot.clone()], programs: vec![program.clone()] };
        match config.as_str() {
            "slot-twice" => plan.slots.push(slot),
            "slot-shape" => plan.slots.push(optimizer::SlotDecl { name: "big".into(), shape: vec![1 << 63, 4], ..slot }),
            "every-zero" => plan.programs.push(optimizer::Program { name: "never".into(), every: 0 }),
            "no-program" => plan.programs.clear(),
            _ => {}
        }
        Ok(plan)
    }

    fn trace(g: &Builder, _: String, io: &StepIo, config: String) -> Result<Option<Value>, Error> {
        misbehave(&config, "optimizer.trace");
        let m = io.slot(if config == "foreign-slot" { "v" } else { "m" })?;
        let lr = io.scalar("lr")?;
        if config == "slot-write" {
            m.write(g, &lr)?;
        }
        if config == "wrong-type" {
            return Ok(Some(lr));
        }
        m.write(g, &io.grad())?;
        let step = g.binary(BinaryOp::Mul, &io.grad(), &lr)?;
        Ok(Some(g.binary(BinaryOp::Sub, &io.weight(), &step)?))
    }

    fn schedule(g: &Builder, step: &Value, total: &Value, config: String) -> Result<Option<Value>, Error> {
        misbehave(&config, "optimizer.schedule");
        match config.as_str() {
            "wrong-type" => Ok(Some(g.full(&[Dim::Fixed(3)], 1.0, Dtype::F32)?)),
            _ => Ok(Some(g.binary(BinaryOp::Div, step, total)?)),
        }
    }
}

impl dataset::Guest for Evil {
    fn list_shards(config: String) -> Result<Vec<dataset::Shard>, Error> {
        misbehave(&config, "dataset.list-shards");
        let shard = dataset::Shard { uri: String::new(), split: "train".into(), format: "generated".into(), bytes: None };
        match config.as_str() {
            "garbage-shard" => Ok(vec![shard]),
            _ => Ok(vec![dataset::Shard { uri: "rows".into(), ..shard }]),
        }
    }

    fn map_rows(config: String, rows: Vec<String>) -> Result<Vec<Sample>, Error> {
        misbehave(&config, "dataset.map-rows");
        let turn = |text: &str| Turn { role: "user".into(), parts: vec![Part::Text(text.into())], train: true, weight: 1.0 };
        let sample = |id, text: &str| Sample {
            id,
            turns: vec![turn(text)],
            chosen: vec![],
            rejected: vec![],
            label: None,
            extra: String::new(),
        };
        let mut samples: Vec<Sample> = rows.iter().enumerate().map(|(i, r)| sample(i as u64, r)).collect();
        match config.as_str() {
            "error:dataset.map-rows" => return Err(error("row 0 is no JSON")),
            "flood" => samples.extend((0..200_000).map(|i| sample(i, ""))),
            "huge" => samples.push(sample(9, &"x".repeat(300 << 20))),
            "weight" => samples[0].turns[0].weight = f32::NAN,
            "no-turns" => samples[0].turns.clear(),
            "extra" => samples[0].extra = "[1, 2".into(),
            _ => {}
        }
        Ok(samples)
    }

    fn generate(config: String, _: String, first: u64, count: u32) -> Result<Vec<Sample>, Error> {
        misbehave(&config, "dataset.generate");
        let count = if config == "too-many" { count + 5 } else { count };
        let rows = (0..u64::from(count)).map(|i| (first + i).to_string()).collect();
        Evil::map_rows("good".into(), rows)
    }
}

impl sampler::Guest for Evil {
    type Matcher = Matcher;

    fn trace(g: &Builder, logits: &Value, config: String) -> Result<Value, Error> {
        misbehave(&config, "sampler.trace");
        match config.as_str() {
            "error:sampler.trace" => Err(error("no logits for you")),
            "wrong-type" => g.reduce(ReduceOp::Max, logits, &[1], true),
            "nan" => g.binary(BinaryOp::Mul, logits, &g.scalar(f64::NAN, Dtype::F32)),
            "keep" => {
                KEPT.with_borrow_mut(|k| *k = Some(logits.dup()));
                Ok(logits.dup())
            }
            "use-kept" => Ok(KEPT.take().unwrap_or_else(|| logits.dup())),
            _ => Ok(logits.dup()),
        }
    }
}

struct Matcher {
    case: String,
    vocab: usize,
    /// Calls so far.
    calls: std::cell::Cell<u32>,
}

impl sampler::GuestMatcher for Matcher {
    fn open(config: String, vocab: Vec<Vec<u8>>) -> Result<sampler::Matcher, Error> {
        misbehave(if config.starts_with("open-") { &config["open-".len()..] } else { "" }, "sampler.matcher.open");
        match config.as_str() {
            "error:sampler.matcher.open" => Err(error("no vocabulary for you")),
            "no-matcher" => Err(Error { code: ErrorCode::UnsupportedOp, ..error("none here") }),
            _ => Ok(sampler::Matcher::new(Matcher { case: config, vocab: vocab.len(), calls: std::cell::Cell::new(0) })),
        }
    }

    fn advance(&self, rows: Vec<u32>, _: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>, Error> {
        self.calls.set(self.calls.get() + 1);
        // `late-X` behaves twice, so that an answer is on its way when it stops to.
        let case = match self.case.strip_prefix("late-") {
            Some(_) if self.calls.get() <= 2 => "good",
            Some(case) => case,
            None => self.case.as_str(),
        };
        misbehave(case, "sampler.matcher.advance");
        let words = self.vocab.div_ceil(32);
        Ok(match case {
            "error:sampler.matcher.advance" => return Err(error("no token for you")),
            "mask-count" => vec![vec![u32::MAX; words]; rows.len() + 1],
            "mask-short" => vec![vec![u32::MAX; words.saturating_sub(1)]; rows.len()],
            "mask-long" => vec![vec![u32::MAX; words + 1]; rows.len()],
            "mask-flood" => vec![vec![u32::MAX; 64 << 20]; rows.len()],
            "forbid" => vec![vec![0; words]; rows.len()],
            "all" => vec![vec![u32::MAX; words]; rows.len()],
            _ => vec![vec![]; rows.len()],
        })
    }
}
