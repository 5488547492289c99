//! `plugins/evil`: misuse in every hook of every kind. Without a guest toolchain these tests say so and pass.

use swift_graph::autodiff::differentiate;
use swift_graph::interp::{self, Env, Tensor};
use swift_graph::{Bindings, DType, Dim, Graph, NodeId, OpRule, ParamId, Shape, SymbolId, Type};
use swift_plugin::{
    BatchBinding, Error, Grants, Head, HostConfig, LimitConfig, LogSink, Mode, ParamInfo, Plugin, PluginHost, SiteBinding,
    SiteKind, StepBinding, TracedModel,
};

use super::{contains, evil, evil_bytes, host_with, scratch, tight};

/// The honest model, which every attack must leave working.
fn honest(plugin: &Plugin) -> TracedModel {
    let mut model = plugin.model().unwrap();
    let plan = model.plan("good").unwrap();
    let traced = model.trace("good", &plan, Mode::Train).unwrap();
    assert_eq!(traced.graph.sites.len(), 2);
    traced
}

fn trace_error(plugin: &Plugin, case: &str) -> String {
    let mut model = plugin.model().unwrap();
    let plan = model.plan("good").unwrap();
    match model.trace(case, &plan, Mode::Train) {
        Ok(_) => panic!("{case}: was not refused"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn attacks_inside_a_trace_end_with_a_limit() {
    let Some(plugin) = evil() else { return };
    let cases: &[(&str, &[&str])] = &[
        ("spin", &["limit `fuel` = 200000000"]),
        ("recurse", &["limit `stack`"]),
        ("memory", &["limit `memory` = 67108864"]),
        ("host-calls", &["limit `host-calls` = 200000"]),
        ("random-flood", &["limit `constant-bytes`", "4294967295 random numbers"]),
        ("nodes", &["at `layers.3`", "limit `nodes` = 100000"]),
        ("nodes-ignoring-errors", &["limit `nodes` = 100000"]),
        ("sites", &["limit `params` = 20000", "site `site.19998`"]),
        ("outputs", &["limit `params` = 20000"]),
        ("failing-forever", &["limit `host-calls`"]),
        ("handles", &["limit `handles` = 20000"]),
        ("scopes", &["limit `scope-depth` = 64"]),
        ("long-scope", &["limit `string-bytes` = 4096"]),
        ("constants", &["limit `constant-bytes` = 16777216"]),
        ("hostcall-bytes", &["limit `hostcall-bytes` = 16777216"]),
        ("symbols", &["limit `symbols` = 256"]),
        ("rank", &["limit `rank` = 6"]),
        ("fan-in", &["limit `fan-in` = 1024"]),
    ];
    for (case, wanted) in cases {
        let message = trace_error(&plugin, case);
        contains(&message, &["plugin `evil`, model.trace"]);
        contains(&message, wanted);
        honest(&plugin);
    }
}

#[test]
fn ten_million_nodes_stop_at_the_default_limit() {
    let Some(bytes) = evil_bytes() else { return };
    let host = host_with(LimitConfig::default());
    let plugin = host.load_bytes("evil", bytes).unwrap();
    contains(&trace_error(&plugin, "nodes"), &["limit `nodes` = 400000"]);
    honest(&plugin);
}

#[test]
fn wrong_shapes_names_and_numbers_come_back_with_place_and_hint() {
    let Some(plugin) = evil() else { return };
    let cases: &[(&str, &[&str])] = &[
        ("pop-scopes", &["pop-scope without a push-scope"]),
        ("constant-length", &["at `layers.3`", "7 bytes are no whole number of 4-byte elements"]),
        ("constant-shape", &["overflows"]),
        ("constant-range", &["does not fit 32 bits"]),
        ("overflow-full", &["overflows 63 bits"]),
        ("overflow-expand", &["at `layers.3`"]),
        ("overflow-dims", &["dimension"]),
        ("overflow-add", &["overflows"]),
        ("divide-by-zero", &["divides 1 by 0"]),
        ("negative-dim", &["negative"]),
        ("nested-dims", &["nested"]),
        ("empty-symbol", &["holds no value"]),
        ("foreign-dim", &["symbolic size 4000000000 does not exist"]),
        ("axis", &["softmax: axis -3 is not in f32[n, 8]", "(hint: axes are -2..1)"]),
        ("axes-twice", &["ascending"]),
        ("permute", &["not a permutation"]),
        ("reshape", &["reshape: [7] holds another number of elements; got f32[n, 8]"]),
        ("slice", &["at `layers.3`", "overflows"]),
        ("concat-nothing", &["at least one value"]),
        ("matmul", &["matmul", "f32[n, 8], f32[n, 8]"]),
        ("dtype", &["one element type", "f32[n, 8], s32[n]"]),
        ("linear", &["linear", "bias must be"]),
        ("norm-eps", &["rms-norm: eps is NaN"]),
        ("rope-nan", &["inv-freq"]),
        ("attention", &["attention"]),
        ("unsupported", &["begin-region: this host does not run it yet", "has-op(\"begin-region\", 1)"]),
        ("top-k", &["top-k: k is 9, but must be in 1..=8"]),
        ("experts", &["grouped-linear", "a weight [e, out, in]", "s32[n]"]),
        ("conv-rank", &["at `layers.3`", "conv: takes x [batch, channels, ...]", "f32[n, 8], f32[8, 8]"]),
        ("conv-stride", &["conv: ", "must be positive"]),
        ("conv-axes", &["conv: ", "a number for each of one or two spatial axes"]),
        ("unknown-op", &["no op `launch-missiles`", "dropout 1"]),
        ("foreign-param", &["there is no parameter `other.weight`"]),
        ("site-twice", &["site `layers.3.proj` exists already", "hint"]),
        ("head-shape", &["set-head"]),
        ("aux-shape", &["aux-loss `aux`"]),
        ("no-head", &["neither a head nor an output"]),
    ];
    for (case, wanted) in cases {
        contains(&trace_error(&plugin, case), wanted);
    }
    honest(&plugin);
    // Not an error: the host closes what the guest left open.
    let mut model = plugin.model().unwrap();
    let plan = model.plan("good").unwrap();
    let open = model.trace("leave-scopes-open", &plan, Mode::Train).unwrap();
    assert_eq!(open.graph.scope_path(open.graph.scope()), "");
    let undeclared = model.trace("cache-undeclared", &plan, Mode::Decode).unwrap_err();
    contains(&undeclared.to_string(), &["cache of layer 77, which its plan does not declare"]);
}

/// A model with a convolution: traced, listed for tuners, evaluated and differentiated.
#[test]
fn convolutions_are_traced_and_trained() {
    let Some(plugin) = evil() else { return };
    let mut model = plugin.model().unwrap();
    let plan = model.plan("conv").unwrap();
    let traced = model.trace("conv", &plan, Mode::Train).unwrap();
    let sites = traced.site_infos(|_| false).unwrap();
    let site = sites.iter().find(|site| site.path == "layers.3.conv").unwrap();
    assert_eq!((site.kind, site.d_in, site.d_out, site.layer), (SiteKind::Conv, 8, 8, Some(3)));

    let mut g = traced.graph.clone();
    let hidden = traced.head.unwrap().hidden;
    let square = g.mul(hidden, hidden).unwrap();
    let loss = g.sum_all(square).unwrap();
    g.outputs.push(("loss".into(), loss));
    let filters = ParamId(g.params().iter().position(|p| p.name == "filters").unwrap() as u32);
    let gradients = differentiate(&mut g, loss, &[filters]).unwrap();
    g.outputs.push(("gradient".into(), gradients[0].1));

    let mut env = Env { bindings: Bindings::new().with(SymbolId::TOKENS, 5), ..Env::default() };
    env.inputs.insert("ids".into(), Tensor::new(vec![5], vec![3.0, 1.0, 4.0, 1.0, 5.0]));
    for (i, p) in g.params().iter().enumerate() {
        let shape: Vec<usize> = p.shape.iter().map(|&d| d as usize).collect();
        let mut at = i as f64;
        let value = Tensor::from_index(shape, |_| {
            at += 1.0;
            (at * 0.7).sin()
        });
        env.params.insert(p.name.clone(), value);
    }
    let run = |env: &Env| interp::run(&g, env).unwrap().outputs;
    let gradient = run(&env)["gradient"].clone();
    assert_eq!(gradient.shape, [8, 8, 3]);
    for at in [0, 50, 191] {
        let mut losses = [1e-5, -1e-5].map(|step| {
            let mut env = env.clone();
            env.params.get_mut("filters").unwrap().data[at] += step;
            run(&env)["loss"].data[0]
        });
        losses[0] = (losses[0] - losses[1]) / 2e-5;
        let off = (gradient.data[at] - losses[0]).abs();
        assert!(off <= 1e-5 * losses[0].abs().max(1.0), "{at}: {} is not {}", gradient.data[at], losses[0]);
    }
    honest(&plugin);
}

#[test]
fn values_of_other_calls_are_refused() {
    let Some(plugin) = evil() else { return };
    let mut model = plugin.model().unwrap();
    let plan = model.plan("good").unwrap();
    model.trace("keep", &plan, Mode::Train).unwrap();
    let stale = model.trace("use-kept", &plan, Mode::Train).unwrap_err();
    contains(&stale.to_string(), &["uses a value of a trace that is over"]);
    contains(&model.trace("good", &plan, Mode::Train).unwrap_err().to_string(), &["broke down earlier"]);
    // Likewise inside one growing graph: a value lent for one site is not lent for the next.
    let traced = honest(&plugin);
    let (mut tuner, mut g, site) = tuned(&plugin, &traced, "use-kept");
    tuner.apply(&mut g, &site).unwrap();
    contains(&tuner.apply(&mut g, &site).unwrap_err().to_string(), &["peft.apply", "uses a value of a trace that is over"]);
    honest(&plugin);
}

#[test]
fn garbage_plans_are_refused() {
    let Some(plugin) = evil() else { return };
    let cases: &[(&str, &[&str])] = &[
        ("error:model.plan-for", &["plugin `evil`, model.plan-for: cannot read the configuration[31m | at all"]),
        ("garbage-names", &["control characters"]),
        ("garbage-empty-name", &["not empty"]),
        ("garbage-twice", &["parameter `w` is declared twice"]),
        ("garbage-shape", &["`huge` has the shape"]),
        ("garbage-zero", &["`none` has the shape [0]"]),
        ("garbage-nan", &["`nan` starts from NaN"]),
        ("garbage-tie", &["`tied` is tied to `nowhere`, which is not declared"]),
        ("garbage-binding", &["a binding is for `x`"]),
        ("garbage-cache", &["cache of layer 0 is declared twice"]),
        ("garbage-long-name", &["limit `string-bytes` = 4096"]),
        ("garbage-flood", &["limit `"]),
        ("garbage-bytes", &["limit `"]),
    ];
    for (case, wanted) in cases {
        let error = plugin.model().unwrap().plan(case).unwrap_err();
        contains(&error.to_string(), wanted);
    }
    honest(&plugin);
}

#[test]
fn every_hook_may_trap() {
    let Some(plugin) = evil() else { return };
    let traced = honest(&plugin);
    let sites = traced.site_infos(|_| false).unwrap();
    let check = |hook: &str, error: Error| {
        contains(&error.to_string(), &["plugin `evil`", hook, &format!("panicked: panicked at {hook}[31m")]);
        honest(&plugin);
    };
    let case = |hook: &str| format!("trap:{hook}");
    let mut model = plugin.model().unwrap();
    let plan = model.plan("good").unwrap();
    check("model.trace", model.trace(&case("model.trace"), &plan, Mode::Train).unwrap_err());
    check("model.plan-for", plugin.model().unwrap().plan(&case("model.plan-for")).unwrap_err());
    check("peft.plan", plugin.tuner().unwrap().plan(&case("peft.plan"), &sites).unwrap_err());
    for hook in ["peft.apply", "peft.merge", "peft.init-param", "peft.export-as"] {
        let (mut tuner, mut g, site) = tuned(&plugin, &traced, &case(hook));
        let error = match hook {
            "peft.apply" => tuner.apply(&mut g, &site).unwrap_err(),
            "peft.merge" => tuner.merge(&mut g, &site).unwrap_err(),
            "peft.init-param" => tuner.init_param(&mut g, &site, "a").unwrap_err(),
            _ => tuner.export("hf-peft").unwrap_err(),
        };
        check(hook, error);
    }
    check("loss.needs-for", plugin.loss().unwrap().needs(&case("loss.needs-for")).unwrap_err());
    let (mut g, batch) = batch(&traced);
    check("loss.trace", plugin.loss().unwrap().trace(&mut g, &batch, &case("loss.trace")).unwrap_err());
    let info = ParamInfo { name: "w".into(), shape: vec![8, 8], tags: vec![] };
    check("optimizer.plan-for", plugin.optimizer().unwrap().plan(&case("optimizer.plan-for"), &info).unwrap_err());
    let (mut g, step) = step(&info);
    let traced = plugin.optimizer().unwrap().trace(&mut g, "update", &step, &case("optimizer.trace"));
    check("optimizer.trace", traced.unwrap_err());
    let scheduled = schedule(&plugin, &case("optimizer.schedule"));
    check("optimizer.schedule", scheduled.unwrap_err());
    let dataset = || plugin.dataset().unwrap();
    check("dataset.list-shards", dataset().shards(&case("dataset.list-shards")).unwrap_err());
    check("dataset.map-rows", dataset().map_rows(&case("dataset.map-rows"), &["{}".into()]).unwrap_err());
    check("dataset.generate", dataset().generate(&case("dataset.generate"), "train", 0, 3).unwrap_err());
}

#[test]
fn tuners_answer_in_kind() {
    let Some(plugin) = evil() else { return };
    let traced = honest(&plugin);
    let sites = traced.site_infos(|_| false).unwrap();
    assert_eq!(sites.iter().map(|s| s.path.as_str()).collect::<Vec<_>>(), ["embed", "layers.3.proj", "norm"]);
    let plan_error = |case: &str| plugin.tuner().unwrap().plan(case, &sites).unwrap_err().to_string();
    contains(&plan_error("foreign-site"), &["site 4000000, which does not exist"]);
    contains(&plan_error("site-twice"), &["twice for site `layers.3.proj`"]);
    contains(&plan_error("embedding-params"), &["only linear sites take any"]);
    contains(&plan_error("error:peft.plan"), &["peft.plan: no"]);
    let apply_error = |case: &str| {
        let (mut tuner, mut g, site) = tuned(&plugin, &traced, case);
        tuner.apply(&mut g, &site).unwrap_err().to_string()
    };
    contains(&apply_error("wrong-type"), &["the site's result must be f32[n, 8]; got f32[8, 8]"]);
    contains(&apply_error("foreign-param"), &["no parameter of this site `model.layers.0.secret`", "there are: a, b"]);
    contains(&apply_error("foreign-common"), &["no common parameter `xtx`"]);
    contains(&apply_error("spin"), &["limit `fuel`"]);
    let (mut tuner, mut g, site) = tuned(&plugin, &traced, "wrong-type");
    contains(&tuner.merge(&mut g, &site).unwrap_err().to_string(), &["the weight must be f32[8, 8]"]);
    contains(&tuner.init_param(&mut g, &site, "a").unwrap_err().to_string(), &["the parameter must be f32[2, 8]"]);
    contains(&tuner.export("garbage-json").unwrap_err().to_string(), &["no JSON"]);
    contains(&tuner.export("garbage-names").unwrap_err().to_string(), &["tensor `a` is named twice"]);
    let (mut tuner, mut g, site) = tuned(&plugin, &traced, "leave-scopes-open");
    g.push_scope("host").unwrap();
    let before = g.scope();
    tuner.apply(&mut g, &site).unwrap();
    assert_eq!(g.scope(), before);
}

#[test]
fn losses_and_optimizers_answer_in_kind() {
    let Some(plugin) = evil() else { return };
    let traced = honest(&plugin);
    let loss_error = |case: &str| {
        let (mut g, batch) = batch(&traced);
        plugin.loss().unwrap().trace(&mut g, &batch, case).unwrap_err().to_string()
    };
    contains(&loss_error("logits"), &["needs the grant `materialize-logits`", "gigabytes"]);
    contains(&loss_error("foreign-field"), &["no field `labels-of-others`", "there are: targets"]);
    contains(&loss_error("no-reference"), &["there is no reference"]);
    contains(&loss_error("temperature"), &["linear-cross-entropy", "temperature"]);
    contains(&loss_error("divergence"), &["linear-divergence", "alpha must be in 0..=1"]);
    contains(&loss_error("rows"), &["head.begin-rows: this host does not run it yet"]);
    contains(&loss_error("not-scalar"), &["the loss must be f32[]; got f32[n]"]);
    contains(&loss_error("metric-shape"), &["metric `m` must be f32[]"]);
    contains(&loss_error("garbage-metrics"), &["metric `m` is named twice"]);
    contains(&plugin.loss().unwrap().needs("garbage-fields").unwrap_err().to_string(), &["field `a` is named twice"]);
    let (mut g, good) = batch(&traced);
    assert!(plugin.loss().unwrap().trace(&mut g, &good, "good").is_ok());
    let (mut g, good) = batch(&traced);
    assert!(plugin.loss().unwrap().trace(&mut g, &good, "distribution").is_ok());
    let ops: Vec<&str> = g.nodes().iter().map(|node| node.op.name()).collect();
    assert!(["linear-statistic", "linear-divergence"].iter().all(|name| ops.contains(name)));

    let info = ParamInfo { name: "w".into(), shape: vec![8, 8], tags: vec![] };
    let plan_error = |case: &str| plugin.optimizer().unwrap().plan(case, &info).unwrap_err().to_string();
    contains(&plan_error("slot-twice"), &["slot `m` is named twice"]);
    contains(&plan_error("slot-shape"), &["`big` has the shape"]);
    contains(&plan_error("every-zero"), &["`never` runs every 0 steps"]);
    contains(&plan_error("no-program"), &["no program"]);
    let step_error = |case: &str| {
        let (mut g, step) = step(&info);
        plugin.optimizer().unwrap().trace(&mut g, "update", &step, case).unwrap_err().to_string()
    };
    contains(&step_error("foreign-slot"), &["no slot `v`", "there are: m"]);
    contains(&step_error("slot-write"), &["write"]);
    contains(&step_error("wrong-type"), &["the new weight must be f32[8, 8]; got f32[]"]);
    let (mut g, good) = step(&info);
    assert!(plugin.optimizer().unwrap().trace(&mut g, "update", &good, "good").unwrap().is_some());
    assert_eq!(g.effects.len(), 1);
    contains(&schedule(&plugin, "wrong-type").unwrap_err().to_string(), &["the factor must be f32[]"]);
    assert!(schedule(&plugin, "good").unwrap().is_some());
}

#[test]
fn datasets_are_bounded_by_the_clock() {
    let Some(plugin) = evil() else { return };
    let rows = ["{}".to_string()];
    let error = |case: &str| plugin.dataset().unwrap().map_rows(case, &rows).unwrap_err().to_string();
    contains(&error("spin"), &["dataset.map-rows", "limit `epoch-ms` = 1000"]);
    contains(&error("memory"), &["limit `memory`"]);
    contains(&error("flood"), &["limit `"]);
    contains(&error("huge"), &["limit `"]);
    contains(&error("weight"), &["sample 0: a turn has the weight NaN"]);
    contains(&error("no-turns"), &["sample 0 has no turns"]);
    contains(&error("extra"), &["`extra` is no JSON object"]);
    contains(&error("error:dataset.map-rows"), &["row 0 is no JSON"]);
    let mut dataset = plugin.dataset().unwrap();
    contains(&dataset.generate("too-many", "train", 0, 3).unwrap_err().to_string(), &["8 samples, but 3 were asked for"]);
    contains(&dataset.shards("garbage-shard").unwrap_err().to_string(), &["not empty"]);
    // Errors that are no traps leave the instance usable.
    let samples = dataset.generate("good", "train", 40, 3).unwrap();
    assert_eq!(samples[2].turns[0].text(), "42");
}

#[test]
fn samplers_are_bounded_and_answer_in_kind() {
    let Some(plugin) = evil() else { return };
    let trace_error = |case: &str| {
        let (mut g, logits) = logits();
        plugin.sampler().unwrap().trace(&mut g, logits, case).unwrap_err().to_string()
    };
    contains(&trace_error("spin"), &["sampler.trace", "limit `fuel`"]);
    contains(&trace_error("wrong-type"), &["the logits must be f32[b, 40]; got f32[b, 1]"]);
    contains(&trace_error("error:sampler.trace"), &["sampler.trace: no logits for you"]);
    let mut sampler = plugin.sampler().unwrap();
    let (mut g, at) = logits();
    assert_eq!(sampler.trace(&mut g, at, "keep").unwrap(), at);
    let (mut g, at) = logits();
    contains(&sampler.trace(&mut g, at, "use-kept").unwrap_err().to_string(), &["handles must not be kept"]);

    let vocab: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i]).collect();
    let open_error = |case: &str| plugin.matcher(case, &vocab).err().expect(case).to_string();
    contains(&open_error("error:sampler.matcher.open"), &["sampler.matcher.open: no vocabulary for you"]);
    contains(&open_error("open-spin"), &["sampler.matcher.open", "limit `epoch-ms` = 1000"]);
    contains(&open_error("open-memory"), &["limit `memory`"]);
    assert!(plugin.matcher("no-matcher", &vocab).unwrap().is_none());
    let advance_error = |case: &str| {
        let mut matcher = plugin.matcher(case, &vocab).unwrap().unwrap();
        let error = matcher.advance(&[3, 5], &[vec![], vec![7]]).unwrap_err().to_string();
        contains(&error, &["plugin `evil`, sampler.matcher.advance"]);
        error
    };
    contains(&advance_error("spin"), &["limit `epoch-ms` = 1000"]);
    contains(&advance_error("recurse"), &["limit `stack`"]);
    contains(&advance_error("memory"), &["limit `memory`"]);
    contains(&advance_error("error:sampler.matcher.advance"), &["no token for you"]);
    contains(&advance_error("mask-count"), &["3 masks for 2 rows"]);
    contains(&advance_error("mask-short"), &["a mask of 1 words; 40 tokens take 2"]);
    contains(&advance_error("mask-long"), &["a mask of 3 words"]);
    contains(&advance_error("mask-flood"), &["limit `"]);
    let mut matcher = plugin.matcher("spin", &vocab).unwrap().unwrap();
    assert!(matcher.advance(&[0], &[vec![]]).is_err());
    contains(&matcher.advance(&[0], &[vec![]]).unwrap_err().to_string(), &["broke down earlier"]);
    // An answer that makes no sense is no trap, and what makes sense comes through.
    assert_eq!(plugin.matcher("all", &vocab).unwrap().unwrap().advance(&[9], &[vec![]]).unwrap(), [[u32::MAX, u32::MAX]]);
    assert_eq!(plugin.matcher("good", &vocab).unwrap().unwrap().advance(&[9], &[vec![]]).unwrap(), [[0u32; 0]]);
}

/// A graph of logits of 40 tokens.
fn logits() -> (Graph, NodeId) {
    let mut g = Graph::default();
    let logits = g.input("logits", Type::new(DType::F32, vec![Dim::symbol(SymbolId::SEQUENCES), Dim::fixed(40)])).unwrap();
    (g, logits)
}

#[test]
fn logs_are_filtered_and_cut() {
    let Some(bytes) = evil_bytes() else { return };
    let (sender, lines) = std::sync::mpsc::channel();
    let log = LogSink::new(move |plugin, _, text| sender.send(format!("{plugin}: {text}")).unwrap());
    let config = HostConfig { cache_dir: Some(scratch("compiled")), limits: tight(), log, ..HostConfig::default() };
    let plugin = PluginHost::new(config).unwrap().load_bytes("evil", bytes).unwrap();
    assert_eq!(plugin.about().name, "evil[31m");
    plugin.dataset().unwrap().map_rows("log-flood", &["{}".into()]).unwrap();
    let lines: Vec<String> = lines.try_iter().collect();
    assert_eq!(lines.len(), 101);
    assert_eq!(lines[0], "evil: [2J line 0 ");
    assert!(lines[100].contains("limit `log-lines` = 100"));
}

#[test]
fn grants_open_what_limits_close() {
    let Some(bytes) = evil_bytes() else { return };
    let grants = Grants { materialize_logits: true };
    let config = HostConfig { cache_dir: Some(scratch("compiled")), limits: tight(), grants, ..HostConfig::default() };
    let plugin = PluginHost::new(config).unwrap().load_bytes("evil", bytes).unwrap();
    let traced = honest(&plugin);
    let (mut g, batch) = batch(&traced);
    assert!(plugin.loss().unwrap().trace(&mut g, &batch, "logits").is_ok());
    assert!(plugin.calls().get() > 0);
    assert_eq!(plugin.digest().len(), 64);
    let text = swift_plugin::inspect::text(&plugin);
    assert!(
        text.contains("peft:evil") && text.contains("swift:tensor/graph@0.1.0") && text.contains("materialize-logits"),
        "{text}"
    );
    assert_eq!(swift_plugin::inspect::json(&plugin)["items"].as_array().unwrap().len(), 6);
}

/// A planned tuner, the model's graph, and its one linear site.
fn tuned(plugin: &Plugin, traced: &TracedModel, case: &str) -> (swift_plugin::TunerGuest, Graph, SiteBinding) {
    let mut tuner = plugin.tuner().unwrap();
    let infos = traced.site_infos(|_| false).unwrap();
    // Attacks that start in `plan` are made there by other tests; a spin would end it here.
    let plan = tuner.plan(if case == "spin" { "good" } else { case }, &infos).unwrap();
    if case == "spin" {
        let error = tuner.plan("spin", &infos).unwrap_err();
        contains(&error.to_string(), &["peft.plan: limit `fuel`"]);
    }
    let mut g = traced.graph.clone();
    let site = g.sites[1].clone();
    let mut params = Vec::new();
    for p in &plan.sites[0].params {
        let name = format!("{}.{}", site.path, p.name);
        let id = g.declare_param(swift_graph::ParamInfo { name, shape: p.shape.clone(), trainable: true }).unwrap();
        params.push((p.name.clone(), id));
    }
    let info = infos.iter().find(|i| i.path == site.path).unwrap().clone();
    let binding =
        SiteBinding { info, x: site.x, weight: site.weight, bias: site.bias, params, common: Vec::new(), training: true };
    (tuner, g, binding)
}

fn batch(traced: &TracedModel) -> (Graph, BatchBinding) {
    let mut g = traced.graph.clone();
    let targets = g.input("targets", Type::new(DType::S32, vec![Dim::symbol(SymbolId::TOKENS)])).unwrap();
    let tokens = g.input("total.tokens", Type::scalar(DType::F32)).unwrap();
    let policy: Head = traced.head.clone().unwrap();
    let fields = vec![("targets".to_string(), targets)];
    let totals = vec![("tokens".to_string(), tokens)];
    (g, BatchBinding { policy, reference: None, teacher: None, fields, totals })
}

fn step(info: &ParamInfo) -> (Graph, StepBinding) {
    let mut g = Graph::default();
    let ty = Type::f32(Shape::fixed(&info.shape));
    let id =
        g.declare_param(swift_graph::ParamInfo { name: info.name.clone(), shape: info.shape.clone(), trainable: true }).unwrap();
    let weight = g.param(id).unwrap();
    let grad = g.input("grad", ty.clone()).unwrap();
    let lr = g.input("lr", Type::scalar(DType::F32)).unwrap();
    let m = g.declare_state("m", ty).unwrap();
    let binding =
        StepBinding { info: info.clone(), grad, weight, slots: vec![("m".into(), m)], scalars: vec![("lr".into(), lr)] };
    (g, binding)
}

fn schedule(plugin: &Plugin, case: &str) -> swift_plugin::Result<Option<NodeId>> {
    let mut g = Graph::default();
    let at = g.input("step", Type::scalar(DType::F32)).unwrap();
    let total = g.input("total", Type::scalar(DType::F32)).unwrap();
    plugin.optimizer().unwrap().schedule(&mut g, at, total, case)
}
