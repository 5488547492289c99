//! Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024, section 2.2.2): Qwen2 with small routed experts and a shared one behind a gate of its
//! own. Names are those of `Qwen2MoeForCausalLM`.

use blocks::{
    Activation, Architecture, Experts, GatedFeedForward, Heads, LayerType, Linear, Net, Norm, Rope, RopeParameters, RopeSource,
    Router, Stack,
};
use swift_sdk::prelude::*;

config! {
    /// The values of model_type that are taken.
    pub enum Kind {
        /// The only one.
        Qwen2Moe = "qwen2_moe",
    }
}

config! {
    /// Qwen 1.5 and 2 mixtures of experts.
    pub struct Qwen2Moe {
        /// The family.
        model_type: Kind = Kind::Qwen2Moe,
        /// Tokens in the vocabulary.
        vocab_size: u64 = 151936,
        /// Width of the residual stream.
        hidden_size: u64 = 2048,
        /// Width of the feed-forward layer where a block has no experts.
        intermediate_size: u64 = 5632,
        /// Number of blocks.
        num_hidden_layers: u32 = 32,
        /// Query heads.
        num_attention_heads: u64 = 32,
        /// Key and value heads.
        num_key_value_heads: u64 = 32,
        /// Size of a head, if not hidden_size / num_attention_heads.
        head_dim: Option<u64> = None,
        /// Activation of the feed-forward layer.
        hidden_act: Activation = Activation::Silu,
        /// Added to the mean square in norms.
        rms_norm_eps: f64 = 1e-6,
        /// Longest sequence of the training.
        max_position_embeddings: u64 = 32768,
        /// The output projection is the token table.
        tie_word_embeddings: bool = false,
        /// Deviation of fresh weights.
        initializer_range: f32 = 0.02,
        /// Number of experts.
        num_experts: u64 = 60,
        /// Experts for each token.
        num_experts_per_tok: u32 = 4,
        /// Width of an expert.
        moe_intermediate_size: u64 = 1408,
        /// Width of the expert that every token goes through.
        shared_expert_intermediate_size: u64 = 5632,
        /// Weights of the chosen experts sum to 1.
        norm_topk_prob: bool = false,
        /// Every so manieth block has experts.
        decoder_sparse_step: u32 = 1,
        /// Blocks without experts.
        mlp_only_layers: Vec<u32> = Vec::new(),
        /// Whether upper layers look back on a window only.
        use_sliding_window: bool = false,
        /// The window, in tokens.
        sliding_window: Option<u32> = None,
        /// Lower layers without a window, where layer_types does not say.
        max_window_layers: u32 = 28,
        /// What each layer looks back on.
        layer_types: Option<Vec<LayerType>> = None,
        /// Base of the rotary frequencies, where rope_parameters does not say.
        rope_theta: Option<f64> = None,
        /// Rotary scaling in older configurations.
        rope_scaling: Option<RopeParameters> = None,
        /// Rotary base and scaling in newer configurations.
        rope_parameters: Option<RopeParameters> = None,
        ..
    }
}

impl Qwen2Moe {
    fn heads(&self) -> [u64; 3] {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        [heads, kv_heads, self.head_dim.unwrap_or(self.hidden_size / heads.max(1))]
    }

    fn rope(&self) -> Result<Rope> {
        Rope::new(RopeSource {
            parameters: self.rope_parameters.as_ref(),
            scaling: self.rope_scaling.as_ref(),
            theta: self.rope_theta,
            head_dim: self.heads()[2],
            max_positions: self.max_position_embeddings,
            ..RopeSource::default()
        })
    }

    fn window(&self, layer: u32) -> Option<u32> {
        let sliding = self.use_sliding_window && layer >= self.max_window_layers;
        LayerType::of(self.layer_types.as_deref(), layer, sliding).window(self.sliding_window.filter(|_| self.use_sliding_window))
    }

    /// Routed experts and the shared one.
    fn mixture(&self, net: &Net, x: &Value) -> Value {
        let d = self.hidden_size;
        let (count, chosen) = (self.num_experts, self.num_experts_per_tok);
        let router = Router { normalized: self.norm_topk_prob, ..Router::new(count, chosen) };
        let names = ["gate_proj", "up_proj", "down_proj"];
        let experts = Experts { count, chosen, d, d_ff: self.moe_intermediate_size, activation: self.hidden_act, names };
        let shared = GatedFeedForward::new(d, self.shared_expert_intermediate_size, self.hidden_act);
        let routed = experts.apply(net, x, &router.choose(&net.at("gate"), x, d));
        let gate = net.linear("shared_expert_gate", x, Linear::new(d, 1)).sigmoid();
        routed + gate * shared.apply(&net.at("shared_expert"), x)
    }

    fn has_experts(&self, layer: u32) -> bool {
        !self.mlp_only_layers.contains(&layer)
            && self.num_experts > 0
            && (layer + 1).is_multiple_of(self.decoder_sparse_step.max(1))
    }
}

impl Architecture for Qwen2Moe {
    fn initializer_range(&self) -> f32 {
        self.initializer_range
    }

    fn forward(&self, net: &Net) -> Result<()> {
        Heads::check(self.heads())?;
        let rope = self.rope()?;
        let d = self.hidden_size;
        let norm = Norm::rms(d, self.rms_norm_eps);
        let mlp = GatedFeedForward::new(d, self.intermediate_size, self.hidden_act);
        let stack = Stack::new(self.vocab_size, d, self.num_hidden_layers, norm).tied(self.tie_word_embeddings);
        stack.run(net, |net, layer, x| {
            let heads = Heads::new(layer, self.heads()).rope(&rope).window(self.window(layer));
            let attended = net.norm("input_layernorm", x, norm);
            let x = x + heads.self_attention(&net.at("self_attn"), &attended, d, [true, false]);
            let fed = net.norm("post_attention_layernorm", &x, norm);
            let net = net.at("mlp");
            x + if self.has_experts(layer) { self.mixture(&net, &fed) } else { mlp.apply(&net, &fed) }
        });
        Ok(())
    }
}

blocks::model! { "qwen2-moe": Qwen2Moe }
