//! Flags of ms-swift that this program does not take, and why: scripts that carry them learn what to do instead.

const ENGINE: &str = "this program has one engine of its own, without Python; leave the flag out. `--max_length` bounds the context, \
                      `--max_batch_size` the rows at once";
const LOCAL: &str = "models and datasets are files and folders of this machine; nothing is downloaded";
const PYTHON: &str = "Python files are not run here; plugins are WebAssembly components, see `plugin list` and `--model_plugin`, \
                      `--dataset_plugin`, `--sampler`";
const MEDIA: &str = "models read text only";
const HEADS: &str = "models generate (`infer`) or give vectors (`embed`); there are no classifiers and rerankers";
const ALWAYS: &str = "what the `args.json` of an adapter or a full checkpoint says is always taken up, and flags that are given win over \
     it; leave the flag out";

/// Name, or with a `*` the beginning of names, and the reason.
const REFUSED: &[(&str, &str)] = &[
    ("infer_backend", ENGINE),
    ("vllm_*", ENGINE),
    ("sglang_*", ENGINE),
    ("lmdeploy_*", ENGINE),
    ("tensor_parallel_size", ENGINE),
    ("gpu_memory_utilization", ENGINE),
    ("max_model_len", ENGINE),
    ("limit_mm_per_prompt", ENGINE),
    ("attn_impl", "attention has one implementation here, which never keeps the scores; leave the flag out"),
    ("num_beams", "there is no beam search; answers are greedy or drawn, see `--temperature`"),
    ("torch_dtype", "weights stay as their file has them, and activations are f32; `--precision` says how products are computed"),
    ("dtype", "weights stay as their file has them, and activations are f32; `--precision` says how products are computed"),
    ("device_map", "the processor is the only device; leave the flag out"),
    ("max_memory", "the processor is the only device; leave the flag out"),
    ("model_type", "the model's own `config.json` or GGUF metadata says what it is; `--model_plugin` names another plugin"),
    ("task_type", HEADS),
    ("num_labels", HEADS),
    ("reranker_use_activation", HEADS),
    ("external_plugins", PYTHON),
    ("custom_register_path", PYTHON),
    ("custom_dataset_info", PYTHON),
    ("use_hf", LOCAL),
    ("hub_token", LOCAL),
    ("model_revision", LOCAL),
    ("download_mode", LOCAL),
    ("max_pixels", MEDIA),
    ("norm_bbox", MEDIA),
    ("load_args", ALWAYS),
];

/// Why a flag is not taken, if ms-swift has it.
pub(super) fn reason(flag: &str) -> Option<&'static str> {
    let flag = flag.split('=').next().unwrap_or(flag);
    let fits = |name: &str| match name.strip_suffix('*') {
        Some(start) => flag.starts_with(start),
        None => flag == name,
    };
    REFUSED.iter().find(|(name, _)| fits(name)).map(|(_, reason)| *reason)
}
