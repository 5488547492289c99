//! `infer`: one question, a chat, or a dataset.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};
use swift_data::{CHATML, ChatTemplate, Encoder, Turn};
use swift_formats::{Generation, read_json};
use swift_plugin::Plugin;
use swift_runtime::{Device, Store};
use swift_serve::{AdaptedModel, Engine, EngineOptions, Request, RequestId, SamplerId, Sampling};
use swift_train::{Text, text_of};

use crate::args::{ComputeArgs, InferArgs, ModelArgs, QuantizationArgs, SamplerArg};
use crate::command::{chat, infer_dataset};
use crate::embedded;
use crate::environment::Environment;

/// Largest `adapter_config.json` or `args.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Cache capacity of a chat where the model's context is longer and `--max_length` is not given.
const CHAT_CAPACITY: usize = 8192;

/// A model with its weights in a device's store.
pub(crate) struct Opened {
    /// Model and adapter method.
    pub(crate) model: AdaptedModel,
    /// Their weights.
    pub(crate) store: Store,
}

/// Opens a model, with an adapter if one is given. The adapter folder knows its base model and its method.
pub(crate) fn open(environment: &Environment, device: &dyn Device, args: &ModelArgs) -> Result<Opened> {
    let adapters = args.adapters.as_deref();
    let adapter = adapters.map(|folder| AdapterSource::read(folder, args.tuner_type.as_deref())).transpose()?;
    let base = adapter.as_ref().and_then(|a| a.base.clone());
    let name = args.model.clone().or(base).unwrap_or_else(|| embedded::MODEL_NAME.into());
    let checkpoint = environment.model(&name)?;
    let plugin = match &args.model_plugin {
        Some(plugin) => plugin.clone(),
        None => environment.model_plugin_of(&checkpoint)?,
    };
    let mut opened = AdaptedModel::open(checkpoint, &environment.plugin(&plugin)?)?;
    let recorded = adapter.as_ref().map(|adapter| &adapter.quantization).filter(|_| args.quantization.as_typed().is_empty());
    if let Some(quantization) = recorded.unwrap_or(&args.quantization).quantization()? {
        opened.quantize(quantization)?;
    }
    let mut store = device.store();
    match &adapter {
        None => opened.load(&mut store, 0)?,
        Some(source) => {
            opened.adapt(&environment.plugin(&source.tuner)?, &source.config.to_string())?;
            opened.load(&mut store, 0)?;
            opened.load_adapter(&mut store, adapters.unwrap_or(Path::new(".")))?;
        }
    }
    Ok(Opened { model: opened, store })
}

/// Tokens that the model was made for.
pub(crate) fn context_of(model: &AdaptedModel) -> usize {
    let config = model.config();
    let keys = ["max_position_embeddings", "n_positions", "seq_length"];
    let found = keys.iter().find_map(|key| config[*key].as_u64());
    found.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// What an adapter folder says of itself.
struct AdapterSource {
    tuner: String,
    config: Value,
    base: Option<String>,
    /// How the base was quantized when the adapter was trained.
    quantization: QuantizationArgs,
}

impl AdapterSource {
    /// `args.json` of our own checkpoints has the tuner's own configuration; a PEFT folder is mapped from `adapter_config.json`.
    fn read(folder: &Path, tuner: Option<&str>) -> Result<AdapterSource> {
        let args = folder.join("args.json");
        if args.is_file() {
            let args = read_json(&args, MAX_CONFIG_BYTES)?;
            let name = tuner.or(args["tuner_type"].as_str());
            let name = name.ok_or_else(|| anyhow!("`{}` names no tuner; say which with `--tuner_type`", folder.display()))?;
            return Ok(AdapterSource {
                tuner: name.into(),
                config: args["tuner_config"].clone(),
                base: args["model"].as_str().map(str::to_string),
                quantization: QuantizationArgs::recorded(&args),
            });
        }
        let path = folder.join(swift_formats::ADAPTER_CONFIG);
        if !path.is_file() {
            bail!(
                "`{}` is no adapter folder: it has neither `args.json` nor `{}`",
                folder.display(),
                swift_formats::ADAPTER_CONFIG
            );
        }
        let peft = read_json(&path, MAX_CONFIG_BYTES)?;
        let named = match (peft["peft_type"].as_str(), peft["use_dora"].as_bool()) {
            (Some("LORA"), Some(true)) => Some("dora"),
            (Some("LORA"), _) => Some("lora"),
            _ => None,
        };
        let name = tuner.or(named).ok_or_else(|| {
            anyhow!("`{}` is of PEFT type {}; name its plugin with `--tuner_type`", folder.display(), peft["peft_type"])
        })?;
        let targets = match &peft["target_modules"] {
            Value::String(one) => json!([one]),
            other => other.clone(),
        };
        let config = json!({
            "r": peft["r"], "lora_alpha": peft["lora_alpha"], "lora_dropout": 0.0, "target_modules": targets,
            "use_rslora": peft["use_rslora"].as_bool().unwrap_or(false),
        });
        let base = peft["base_model_name_or_path"].as_str().filter(|b| Path::new(b).exists() || *b == embedded::MODEL_NAME);
        let quantization = QuantizationArgs::default();
        Ok(AdapterSource { tuner: name.into(), config, base: base.map(str::to_string), quantization })
    }
}

/// A model that answers, and how it was asked to.
pub(crate) struct Session {
    opened: Opened,
    device: Box<dyn Device>,
    pub(crate) text: Text,
    sampling: Sampling,
    stop_tokens: Vec<i32>,
    stop_words: Vec<String>,
    samplers: Vec<(Plugin, String)>,
    /// The same in the engine that was made last.
    sampler_ids: Vec<SamplerId>,
    max_new_tokens: Option<usize>,
    use_chat_template: bool,
    /// Variables of the template.
    variables: Map<String, Value>,
    truncation: Option<Truncation>,
    compute: ComputeArgs,
    /// System prompt.
    pub(crate) system: Option<String>,
    /// Tokens of prompt and answer together at most.
    context: usize,
}

/// What happens to prompts that leave no room for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Truncation {
    Delete,
    Left,
    Right,
}

impl Truncation {
    fn parse(name: &str) -> Result<Truncation> {
        match name {
            "delete" => Ok(Truncation::Delete),
            "left" => Ok(Truncation::Left),
            "right" => Ok(Truncation::Right),
            other => bail!("`--truncation_strategy {other}`: known are delete, left and right"),
        }
    }
}

/// What the run recorded that made the adapter, or without one the model: checkpoints of full fine-tunes hold an `args.json` too. Nothing
/// for models and folders of other software.
pub(crate) fn recorded(args: &ModelArgs) -> Result<Value> {
    let folder = args.adapters.as_deref().or(args.model.as_deref().map(Path::new));
    let path = folder.map(|folder| folder.join("args.json")).filter(|path| path.is_file());
    Ok(path.map(|path| read_json(&path, MAX_CONFIG_BYTES)).transpose()?.unwrap_or(Value::Null))
}

impl Session {
    fn new(environment: &Environment, args: &InferArgs) -> Result<Session> {
        let device = environment.device()?;
        let mut opened = open(environment, &*device, &args.model)?;
        if args.merge_lora.unwrap_or(false) {
            opened.model.merge(&*device, &mut opened.store)?;
        }
        let mut text = text_of(opened.model.checkpoint())?;
        if let Some(template) = &args.template {
            text.template = Some(ChatTemplate::new(&template_source(template)?, &text.tokenizer)?);
        }
        let recorded = recorded(&args.model)?;
        let system = args.system.as_deref().map(system_prompt).transpose()?;
        let mut variables = Map::new();
        variables.extend(args.enable_thinking.map(|on| ("enable_thinking".to_string(), on.into())));
        let sampling = sampling(args, &opened.model.checkpoint().generation()?)?;
        let context = context_of(&opened.model);
        if args.max_length.is_some_and(|n| n < 2 || n > context) {
            bail!("`--max_length` must be between 2 and the model's context of {context} tokens");
        }
        if args.max_new_tokens == Some(0) {
            bail!("`--max_new_tokens` must be at least 1");
        }
        if let (_, Some(idle)) = args.compute.precision(&opened.store) {
            eprintln!("{idle}");
        }
        Ok(Session {
            stop_tokens: text.tokenizer.stop_ids().into_iter().map(|id| id as i32).collect(),
            stop_words: args.stop_words.clone(),
            samplers: samplers(environment, &args.sampler)?,
            sampler_ids: Vec::new(),
            max_new_tokens: args.max_new_tokens,
            use_chat_template: args.use_chat_template.or(recorded["use_chat_template"].as_bool()).unwrap_or(true),
            variables,
            truncation: args.truncation_strategy.as_deref().map(Truncation::parse).transpose()?,
            compute: args.compute,
            system: system.or(recorded["system"].as_str().map(str::to_string)),
            context: args.max_length.unwrap_or(context),
            opened,
            device,
            text,
            sampling,
        })
    }

    /// Tokens of a conversation, ready for the answer.
    pub(crate) fn prompt(&self, turns: &[Turn], tools: Option<&Value>) -> Result<Vec<i32>> {
        let template = if self.use_chat_template { self.text.template.as_ref() } else { None };
        let system = self.system.iter().filter(|_| turns.first().is_none_or(|t| t.role != "system"));
        let turns: Vec<Turn> = system.map(|s| Turn::new("system", s)).chain(turns.iter().cloned()).collect();
        let encoder = Encoder { variables: Some(&self.variables), ..Encoder::new(&self.text.tokenizer, template) };
        let ids = encoder.encode_prompt(&turns, tools)?;
        Ok(ids.into_iter().map(|id| id as i32).collect())
    }

    /// Whether rows whose prompt leaves no room are left out.
    pub(crate) fn leaves_out(&self, prompt: &[i32]) -> bool {
        self.truncation == Some(Truncation::Delete) && prompt.len() >= self.context
    }

    /// A request of one answer.
    pub(crate) fn request(&self, mut prompt: Vec<i32>) -> Result<Request> {
        if prompt.len() >= self.context {
            let most = self.context.saturating_sub(self.max_new_tokens.unwrap_or(1)).max(1);
            match self.truncation {
                Some(Truncation::Left) => drop(prompt.drain(..prompt.len() - most)),
                Some(Truncation::Right) => prompt.truncate(most),
                Some(Truncation::Delete) | None => bail!(
                    "the prompt has {} tokens, and the context holds {}\nhint: `--truncation_strategy left` keeps its end",
                    prompt.len(),
                    self.context
                ),
            }
        }
        let room = self.context - prompt.len();
        let mut request = Request::new(prompt, self.max_new_tokens.unwrap_or(room).min(room));
        request.sampling = self.sampling.clone();
        (request.stop_tokens, request.stop_strings) = (self.stop_tokens.clone(), self.stop_words.clone());
        Ok(request)
    }

    /// An engine for these requests.
    pub(crate) fn engine_for(&mut self, requests: &[Request], slots: usize) -> Result<Engine> {
        let longest = requests.iter().map(|r| r.prompt.len() + r.max_new_tokens).max().unwrap_or(2);
        self.engine(longest, slots)
    }

    /// An engine for a chat. Its context is what the session has from now on.
    pub(crate) fn chat_engine(&mut self) -> Result<Engine> {
        self.context = self.context.min(CHAT_CAPACITY);
        self.engine(self.context, 1)
    }

    fn engine(&mut self, capacity: usize, slots: usize) -> Result<Engine> {
        let Opened { model, store } = &mut self.opened;
        let (precision, _) = self.compute.precision(store);
        let (cache, batching) = (self.compute.kv_cache_dtype.into(), self.compute.batching.into());
        let options = EngineOptions { precision, cache, batching, ..EngineOptions::new(slots, capacity) };
        let mut engine = Engine::new(model, &*self.device, store, options, Some(self.text.tokenizer.clone()))?;
        let added = self.samplers.iter().map(|(plugin, config)| engine.add_sampler(plugin, config, &*self.device, store));
        self.sampler_ids = added.collect::<Result<_, _>>()?;
        Ok(engine)
    }

    /// Queues a request with the session's samplers.
    pub(crate) fn submit(&self, engine: &mut Engine, mut request: Request) -> Result<RequestId> {
        request.samplers = self.sampler_ids.clone();
        Ok(engine.submit(request)?)
    }

    /// The weights.
    pub(crate) fn store(&mut self) -> &mut Store {
        &mut self.opened.store
    }

    /// The model's file or folder.
    pub(crate) fn model_path(&self) -> &Path {
        self.opened.model.checkpoint().path()
    }
}

/// The sampler plugins with their configurations.
fn samplers(environment: &Environment, args: &[SamplerArg]) -> Result<Vec<(Plugin, String)>> {
    args.iter().map(|arg| Ok((environment.plugin(&arg.plugin)?, arg.config.to_string()))).collect()
}

/// The flags over what the model's authors recommend.
fn sampling(args: &InferArgs, recommended: &Generation) -> Result<Sampling> {
    let mut sampling = Sampling::recommended(recommended);
    if sampling.temperature == 0.0 && args.temperature.is_some_and(|temperature| temperature > 0.0) {
        // Asked to sample all the same, it keeps to the cuts that are recommended.
        let (do_sample, top_k) = (Some(true), recommended.top_k.or(Some(0)));
        sampling = Sampling::recommended(&Generation { do_sample, top_k, ..recommended.clone() });
    }
    let flags = [
        (args.temperature, &mut sampling.temperature),
        (args.top_p, &mut sampling.top_p),
        (args.min_p, &mut sampling.min_p),
        (args.repetition_penalty, &mut sampling.repetition_penalty),
        (args.presence_penalty, &mut sampling.presence_penalty),
        (args.frequency_penalty, &mut sampling.frequency_penalty),
    ];
    for (flag, setting) in flags {
        *setting = flag.unwrap_or(*setting);
    }
    sampling.top_k = args.top_k.unwrap_or(sampling.top_k);
    sampling.seed = args.seed.unwrap_or(sampling.seed);
    sampling.check()?;
    let greedy = sampling.temperature == 0.0;
    let idle = [("top_k", args.top_k.is_some_and(|k| k > 1)), ("top_p", args.top_p.is_some()), ("min_p", args.min_p.is_some())];
    if let Some((name, _)) = idle.iter().find(|(_, given)| greedy && *given) {
        bail!("`--{name}` has no effect on greedy answers\nhint: add `--temperature 1`");
    }
    Ok(sampling)
}

/// The source of a chat template by its name or file.
fn template_source(template: &str) -> Result<String> {
    match Path::new(template).extension().is_some_and(|e| e == "jinja") {
        true => std::fs::read_to_string(template).with_context(|| format!("cannot read `{template}`")),
        false if template == "chatml" => Ok(CHATML.to_string()),
        false => {
            bail!("`--template {template}`: known are chatml and files that end in .jinja\nhint: the model's own is the default")
        }
    }
}

/// The text, or that of the .txt file which it names.
pub(crate) fn system_prompt(system: &str) -> Result<String> {
    let path = Path::new(system);
    if path.extension().is_some_and(|e| e == "txt") && path.is_file() {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{system}`"))?;
        return Ok(text.trim_end().to_string());
    }
    Ok(system.to_string())
}

/// Answers.
pub(crate) fn infer(environment: &Environment, args: &InferArgs) -> Result<ExitCode> {
    let from_run = args.load_data_args.unwrap_or(false);
    let idle = [
        ("merge_lora", args.merge_lora == Some(true) && args.model.adapters.is_none(), "`--adapters`"),
        (
            "load_data_args",
            from_run && recorded(&args.model)?.is_null(),
            "`--adapters` or a `--model` folder with the `args.json` of a run",
        ),
        ("template", args.template.is_some() && args.use_chat_template == Some(false), "the chat template"),
        ("enable_thinking", args.enable_thinking.is_some() && args.use_chat_template == Some(false), "the chat template"),
    ];
    if let Some((name, _, what)) = idle.iter().find(|(_, given, _)| *given) {
        bail!("`--{name}` has no effect without {what}");
    }
    if !args.val_dataset.is_empty() || from_run {
        return infer_dataset::infer_dataset(environment, Session::new(environment, args)?, args);
    }
    let idle = [
        ("dataset_plugin", args.dataset_plugin.is_some()),
        ("max_batch_size", args.max_batch_size.is_some()),
        ("result_path", args.result_path.is_some()),
        ("write_batch_size", args.write_batch_size.is_some()),
        ("logprobs", args.logprobs.is_some()),
        ("metric", args.metric.is_some()),
    ];
    if let Some((name, _)) = idle.iter().find(|(_, given)| *given) {
        bail!("`--{name}` has no effect without `--val_dataset`");
    }
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if std::io::stdin().is_terminal() => {
            return chat::chat(Session::new(environment, args)?, args.stream.unwrap_or(true));
        }
        None => {
            let mut text = String::new();
            std::io::stdin().take(16 << 20).read_to_string(&mut text).context("cannot read standard input")?;
            text.trim_end().to_string()
        }
    };
    let mut session = Session::new(environment, args)?;
    let request = session.request(session.prompt(&[Turn::new("user", prompt)], None)?)?;
    let mut engine = session.engine_for(std::slice::from_ref(&request), 1)?;
    session.submit(&mut engine, request)?;
    let stream = args.stream.unwrap_or(true);
    let (mut answer, mut fine, mut failure) = (String::new(), true, None);
    let mut out = std::io::stdout().lock();
    engine.drain(session.store(), |update| {
        answer.push_str(&update.text);
        failure = update.failure.clone();
        // A closed pipe ends the answer quietly.
        fine = !stream || update.text.is_empty() || write!(out, "{}", update.text).and_then(|()| out.flush()).is_ok();
        if fine { std::ops::ControlFlow::Continue(()) } else { std::ops::ControlFlow::Break(()) }
    })?;
    let end = if stream { writeln!(out) } else { writeln!(out, "{answer}") };
    if let Some(failure) = failure {
        bail!("{failure}");
    }
    Ok(if fine && end.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
