//! Models, plugins and single training steps through the library crates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use swift_data::{Batch, Encoded, collate};
use swift_formats::Checkpoint;
use swift_graph::passes::Options;
use swift_graph::{Bindings, SymbolId};
use swift_plugin::{HostConfig, Plugin, PluginHost};
use swift_runtime::{CpuDevice, CpuOptions, Device, HostTensor, Inputs, Store};
use swift_serve::{AdaptedModel, Quantization, compile};
use swift_train::{Programs, UpdateSpec, assemble};

/// A plugin host and a device.
pub struct Lab {
    host: PluginHost,
    /// The device.
    pub device: CpuDevice,
}

/// A model with its weights.
pub struct Loaded {
    /// Model and adapter method.
    pub model: AdaptedModel,
    /// Their weights.
    pub store: Store,
}

impl Default for Lab {
    fn default() -> Lab {
        Lab::new(2)
    }
}

impl Lab {
    /// A device of `threads` threads.
    pub fn new(threads: usize) -> Lab {
        let cache_dir = Some(crate::binary::cache().join("lab"));
        let host = PluginHost::new(HostConfig { cache_dir, ..HostConfig::default() }).expect("the plugin host starts");
        Lab { host, device: CpuDevice::new(CpuOptions { threads, isa: None }).expect("the device starts") }
    }

    /// A bundled plugin.
    #[track_caller]
    pub fn plugin(&self, name: &str) -> Plugin {
        self.host.load_file(&crate::plugins().join(format!("{name}.wasm"))).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The bundled model plugin that takes a checkpoint.
    #[track_caller]
    fn model_plugin(&self, checkpoint: &Checkpoint) -> Plugin {
        let files = std::fs::read_dir(crate::plugins()).expect("the plugins' folder").flatten().map(|entry| entry.path());
        let mut installed: Vec<(String, PathBuf)> = files
            .filter(|path| path.extension().is_some_and(|extension| extension == "wasm"))
            .filter_map(|path| Some((path.file_stem()?.to_str()?.to_string(), path)))
            .collect();
        installed.sort();
        let name = self.host.model_plugin(&installed, checkpoint.config()).unwrap_or_else(|e| panic!("{e}"));
        self.plugin(&name)
    }

    /// A checkpoint without weights in a store.
    #[track_caller]
    pub fn model(&self, checkpoint: Checkpoint) -> AdaptedModel {
        let plugin = self.model_plugin(&checkpoint);
        AdaptedModel::open(Arc::new(checkpoint), &plugin).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A checkpoint with a fresh adapter, `(plugin, configuration)`, if one is given.
    #[track_caller]
    pub fn open(&self, checkpoint: &Path, adapter: Option<(&str, Value)>) -> Loaded {
        let checkpoint = Checkpoint::open(checkpoint).expect("the checkpoint opens");
        self.load(self.model(checkpoint), adapter)
    }

    /// The same, with its linear layers rounded while they are loaded.
    #[track_caller]
    pub fn open_rounded(&self, checkpoint: &Path, quantization: Quantization, adapter: Option<(&str, Value)>) -> Loaded {
        let mut model = self.model(Checkpoint::open(checkpoint).expect("the checkpoint opens"));
        model.quantize(quantization).unwrap_or_else(|e| panic!("{e}"));
        self.load(model, adapter)
    }

    #[track_caller]
    fn load(&self, mut model: AdaptedModel, adapter: Option<(&str, Value)>) -> Loaded {
        if let Some((tuner, config)) = adapter {
            model.adapt(&self.plugin(tuner), &config.to_string()).expect("the model is adapted");
        }
        let mut store = self.device.store();
        model.load(&mut store, 7).expect("weights load");
        if let Some(init) = model.init_graph().expect("starting values are traced") {
            let mut init = compile(&self.device, &store, init).expect("starting values compile");
            init.run(&mut store, &bindings(1, 1), &Inputs::new()).expect("starting values are computed");
        }
        Loaded { model, store }
    }
}

impl Loaded {
    /// Logits of every token, row by row.
    #[track_caller]
    pub fn logits(&mut self, lab: &Lab, tokens: &[i32]) -> Vec<f32> {
        let logits = swift_serve::logits(&mut self.model, &lab.device, &mut self.store, tokens).expect("the model runs");
        logits.floats().expect("logits are floats").to_vec()
    }

    /// An encoder's output of every token, row by row.
    #[track_caller]
    pub fn encode(&mut self, lab: &Lab, tokens: &[i32], output: &str) -> Vec<f32> {
        let hidden = swift_serve::encode(&mut self.model, &lab.device, &mut self.store, tokens, output).expect("the model runs");
        hidden.floats().expect("hidden states are floats").to_vec()
    }

    /// A parameter.
    #[track_caller]
    pub fn param(&self, name: &str) -> Vec<f32> {
        self.store.read_f32(name).and_then(|t| Ok(t.floats()?.to_vec())).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Replaces an adapter parameter.
    #[track_caller]
    pub fn set(&mut self, name: &str, values: Vec<f32>) {
        let shape = self.store.weight_info(name).unwrap_or_else(|e| panic!("{name}: {e}")).0.to_vec();
        self.store.insert_f32(name, shape, values).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// Compiled training of a loaded model: cross-entropy, and AdamW that decays everything.
pub struct Trainer {
    /// The model.
    pub loaded: Loaded,
    /// Its programs.
    pub programs: Programs,
    step: u64,
}

impl Trainer {
    /// Traces, differentiates and compiles. Gradient norms over `max_grad_norm` are clipped, if it is not 0.
    #[track_caller]
    pub fn new(lab: &Lab, mut loaded: Loaded, max_grad_norm: f64) -> Trainer {
        let mut loss = lab.plugin("cross-entropy").loss().expect("a loss");
        let mut optimizer = lab.plugin("adamw").optimizer().expect("an optimizer");
        let config = json!({ "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "decay_all": true }).to_string();
        let update = UpdateSpec { config: &config, max_grad_norm };
        let (model, store) = (&mut loaded.model, &mut loaded.store);
        let programs = assemble(model, &mut loss, "{}", &mut optimizer, &update, &lab.device, store, &Options::default());
        let mut programs = programs.unwrap_or_else(|e| panic!("{e}"));
        if let Some(prologue) = &mut programs.prologue {
            prologue.run(store, &bindings(1, 1), &Inputs::new()).expect("constants are computed");
        }
        Trainer { loaded, programs, step: 0 }
    }

    /// Adds the batch's gradients to the sums; returns the loss.
    #[track_caller]
    pub fn backward(&mut self, batch: &Batch) -> f64 {
        let n = batch.tokens();
        let mut inputs = Inputs::new();
        let columns =
            [("ids", &batch.ids), ("positions", &batch.positions), ("segments", &batch.segments), ("targets", &batch.labels)];
        for (name, values) in columns {
            inputs.set(name, HostTensor::i32([n], values.clone()));
        }
        inputs.set("loss-weights", HostTensor::f32([n], batch.weights.clone()));
        inputs.set("total.tokens", HostTensor::scalar(batch.trained_tokens() as f32));
        inputs.set("total.sequences", HostTensor::scalar(batch.sequences as f32));
        inputs.set("rng", HostTensor::i32([2], vec![7, 0]));
        let outputs = self.programs.train.run(&mut self.loaded.store, &bindings(n, batch.sequences), &inputs);
        outputs.and_then(|o| o.scalar("loss")).unwrap_or_else(|e| panic!("{e}")).into()
    }

    /// One AdamW update from the summed gradients, which it clears; returns their norm before clipping.
    #[track_caller]
    pub fn update(&mut self, lr: f32, weight_decay: f32) -> f64 {
        self.step += 1;
        let scalars = Inputs::new()
            .with("lr", HostTensor::scalar(lr))
            .with("step", HostTensor::scalar(self.step as f32))
            .with("weight-decay", HostTensor::scalar(weight_decay));
        let mut norm = 0.0;
        for (_, program) in &mut self.programs.updates {
            let outputs = program.run(&mut self.loaded.store, &bindings(1, 1), &scalars);
            norm = outputs.and_then(|o| o.scalar("grad_norm")).unwrap_or_else(|e| panic!("{e}"));
        }
        norm.into()
    }
}

/// A batch of whole sequences, every next token trained on.
pub fn sequences(ids: &[Vec<i32>]) -> Batch {
    let encoded: Vec<Encoded> = ids.iter().map(|ids| Encoded { ids: ids.clone(), labels: ids.clone(), weights: None }).collect();
    collate(&encoded)
}

fn bindings(tokens: usize, sequences: usize) -> Bindings {
    Bindings::new().with(SymbolId::TOKENS, tokens as u64).with(SymbolId::SEQUENCES, sequences as u64)
}
