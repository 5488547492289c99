//! How text is cut before byte-level BPE, by the names that GGUF files use (`tokenizer.ggml.pre`).
//!
//! A pipeline is a sequence of patterns: each cuts the pieces that the one before left, matches and what lies between them
//! alike becoming pieces. The patterns are those of the models' own `tokenizer.json`; llama.cpp's `llama-vocab.cpp` says which
//! name stands for which of them, whether a piece that is a token wins over merges, and whether a text begins with bos.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+";
const DEEPSEEK3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const DEEPSEEK3_CJK: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";
/// Letters with case, as listed in DeepSeek-LLM's own file. Escaped, for compatibility characters do not survive editors.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+";
const DEEPSEEK_MARKS: &str = r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+";
const DEEPSEEK_CJK: &str = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+";

/// A pipeline that cuts text before byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreTokenizer {
    /// What llama.cpp does where a file names no pre-tokenizer that it knows: punctuation, words, digits by threes.
    Default,
    /// GPT-2's pattern.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    SmolLm,
    /// Llama 3's pattern.
    Llama3,
    /// Digits by threes, then Llama 3's pattern.
    MiniCpm5,
    /// Qwen 2's pattern, after Unicode NFC.
    Qwen2,
    /// Qwen 2's pattern without normalization.
    StableLm2,
    /// Qwen 3.5's pattern, where marks belong to their letters, after Unicode NFC.
    Qwen35,
    /// Mistral's Tekken pattern, which cuts between lower and upper case.
    Tekken,
    /// GPT-4o's pattern.
    Gpt4o,
    /// Seed-Coder's pattern.
    SeedCoder,
    /// The Ling models' pattern.
    BailingMoe,
    /// EXAONE 4's mixture of experts.
    ExaoneMoe,
    /// DeepSeek LLM.
    DeepSeekLlm,
    /// DeepSeek Coder.
    DeepSeekCoder,
    /// DeepSeek V3.
    DeepSeek3,
    /// Falcon.
    Falcon,
    /// Bloom and Poro.
    Bloom,
    /// Viking: Bloom's pattern, then single digits.
    Viking,
}

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preset {
    pub(super) pre: PreTokenizer,
    /// A piece that is a token is that token, whatever merges would give.
    pub(super) whole_words: bool,
    /// A text begins with bos unless the file says otherwise.
    pub(super) adds_bos: bool,
    /// Text is brought into Unicode NFC first, which the models' own files do and llama.cpp leaves out.
    pub(super) composes: bool,
}

impl PreTokenizer {
    /// The name in `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::Llama3 => "llama-bpe",
            Self::MiniCpm5 => "minicpm5",
            Self::Qwen2 => "qwen2",
            Self::StableLm2 => "stablelm2",
            Self::Qwen35 => "qwen35",
            Self::Tekken => "tekken",
            Self::Gpt4o => "gpt-4o",
            Self::SeedCoder => "seed-coder",
            Self::BailingMoe => "bailingmoe",
            Self::ExaoneMoe => "exaone-moe",
            Self::DeepSeekLlm => "deepseek-llm",
            Self::DeepSeekCoder => "deepseek-coder",
            Self::DeepSeek3 => "deepseek-v3",
            Self::Falcon => "falcon",
            Self::Bloom => "bloom",
            Self::Viking => "viking",
        }
    }

    fn patterns(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            Self::Gpt2 => &[GPT2],
            Self::SmolLm => &[r"\p{N}", GPT2],
            Self::Llama3 => &[LLAMA3],
            Self::MiniCpm5 => &[r"\p{N}{1,3}", LLAMA3],
            Self::Qwen2 | Self::StableLm2 => &[QWEN2],
            Self::Qwen35 => &[QWEN35],
            Self::Tekken => &[TEKKEN],
            Self::Gpt4o => &[GPT4O],
            Self::SeedCoder => &[SEED_CODER],
            Self::BailingMoe => &[BAILING],
            Self::ExaoneMoe => &[EXAONE_MOE],
            Self::DeepSeekLlm => &[r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_CJK, r"\p{N}+"],
            Self::DeepSeekCoder => &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"],
            Self::DeepSeek3 => &[r"\p{N}{1,3}", DEEPSEEK3_CJK, DEEPSEEK3_WORDS],
            Self::Falcon => &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
            Self::Bloom => &[BLOOM],
            Self::Viking => &[BLOOM, r"\p{N}"],
        }
    }

    pub(super) fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps = Vec::new();
        for pattern in self.patterns() {
            steps.push(Split::new(SplitPattern::Regex((*pattern).into()), SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

impl Preset {
    /// The preset of a name; `None` for names that stand for nothing read here.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let preset = |pre, whole_words, adds_bos| Some(Self { pre, whole_words, adds_bos, composes: false });
        let plain = |pre| preset(pre, false, false);
        let composed = |pre| Some(Self { pre, whole_words: false, adds_bos: false, composes: true });
        match name {
            "default" => plain(PreTokenizer::Default),
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "a.x-4.0" | "mellum"
            | "modern-bert" | "jina-v1-en" | "jina-v2-code" | "roberta-bpe" | "exaone4" | "jais" | "trillion"
            | "granite-docling" => plain(PreTokenizer::Gpt2),
            "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => plain(PreTokenizer::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" | "jina-v5-nano" => {
                preset(PreTokenizer::Llama3, true, true)
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => plain(PreTokenizer::Llama3),
            "glm4" | "glm5" => preset(PreTokenizer::Llama3, true, false),
            "minicpm5" => preset(PreTokenizer::MiniCpm5, true, false),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" => composed(PreTokenizer::Qwen2),
            "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => plain(PreTokenizer::StableLm2),
            "mpt" | "olmo" => composed(PreTokenizer::Gpt2),
            "command-r" => composed(PreTokenizer::SmolLm),
            "qwen35" => composed(PreTokenizer::Qwen35),
            "tekken" => preset(PreTokenizer::Tekken, true, true),
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => plain(PreTokenizer::Gpt4o),
            "seed-coder" => plain(PreTokenizer::SeedCoder),
            "bailingmoe" | "bailingmoe2" | "llada-moe" => plain(PreTokenizer::BailingMoe),
            "exaone-moe" => plain(PreTokenizer::ExaoneMoe),
            "deepseek-llm" => plain(PreTokenizer::DeepSeekLlm),
            "deepseek-coder" => plain(PreTokenizer::DeepSeekCoder),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => plain(PreTokenizer::DeepSeek3),
            "falcon" => plain(PreTokenizer::Falcon),
            "bloom" | "poro-chat" | "gpt3-finnish" => plain(PreTokenizer::Bloom),
            "viking" => plain(PreTokenizer::Viking),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pipeline_compiles_and_is_found_by_its_name() {
        use PreTokenizer::*;
        for pre in [
            Default,
            Gpt2,
            SmolLm,
            Llama3,
            MiniCpm5,
            Qwen2,
            StableLm2,
            Qwen35,
            Tekken,
            Gpt4o,
            SeedCoder,
            BailingMoe,
            ExaoneMoe,
            DeepSeekLlm,
            DeepSeekCoder,
            DeepSeek3,
            Falcon,
            Bloom,
            Viking,
        ] {
            pre.build().unwrap_or_else(|error| panic!("{}: {error}", pre.name()));
            assert_eq!(Preset::from_name(pre.name()).unwrap().pre, pre);
        }
        assert!(Preset::from_name("no-such").is_none());
    }
}
