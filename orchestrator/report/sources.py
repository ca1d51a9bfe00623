"""BibTeX of the losses and of the statistical methods, as data."""

DIVERGENCE = "wang2024fdpo"
"""The source of divergences other than the reverse KL."""
SOURCES = {
    "sigmoid": "rafailov2023dpo",
    "hinge": "liu2024rso",
    "ipo": "azar2024ipo",
    "exo_pair": "ji2024exo",
    "nca_pair": "chen2024nca",
    "robust": "chowdhury2024robust",
    "bco_pair": "jung2024bco",
    "sppo_hard": "wu2024sppo",
    "aot": "melnyk2024aot",
    "aot_unpaired": "melnyk2024aot",
    "apo_zero": "doosterlinck2024apo",
    "apo_down": "doosterlinck2024apo",
    "discopop": "lu2024discopop",
    "sft": "pang2024irpo",
    "sigmoid_norm": "lambert2024tulu3",
}
"""Loss -> key of its source; workers/losses.py has the formulas."""
METHOD_SOURCES = {
    "always": ("efron1982", "wilson1927", "dunnett1955", "hothorn2008"),
    "seeds": ("banerjee1961", "welch1947"),
}
"""Keys that the methods paragraph cites always, and with several seeds."""


def _entry(key: str, kind: str, **fields: str) -> tuple[str, str]:
    inner = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return key, f"@{kind}{{{key},\n{inner}\n}}"


def _arxiv(key: str, title: str, author: str, year: str, eprint: str) -> tuple[str, str]:
    entry = {"title": title, "author": author, "year": year}
    return _entry(key, "misc", **entry, eprint=eprint, archivePrefix="arXiv")


BIBTEX = dict(
    (
        _arxiv(
            "rafailov2023dpo",
            "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
            "Rafailov, Rafael and others",
            "2023",
            "2305.18290",
        ),
        _arxiv(
            "liu2024rso",
            "Statistical Rejection Sampling Improves Preference Optimization",
            "Liu, Tianqi and others",
            "2023",
            "2309.06657",
        ),
        _arxiv(
            "azar2024ipo",
            "A General Theoretical Paradigm to Understand Learning from Human Preferences",
            "Azar, Mohammad Gheshlaghi and others",
            "2023",
            "2310.12036",
        ),
        _arxiv(
            "ji2024exo",
            "Towards Efficient Exact Optimization of Language Model Alignment",
            "Ji, Haozhe and others",
            "2024",
            "2402.00856",
        ),
        _arxiv(
            "chen2024nca",
            "Noise Contrastive Alignment of Language Models with Explicit Rewards",
            "Chen, Huayu and others",
            "2024",
            "2402.05369",
        ),
        _arxiv(
            "chowdhury2024robust",
            "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
            "Chowdhury, Sayak Ray and others",
            "2024",
            "2403.00409",
        ),
        _arxiv(
            "jung2024bco",
            "Binary Classifier Optimization for Large Language Model Alignment",
            "Jung, Seungjae and others",
            "2024",
            "2404.04656",
        ),
        _arxiv(
            "wu2024sppo",
            "Self-Play Preference Optimization for Language Model Alignment",
            "Wu, Yue and others",
            "2024",
            "2405.00675",
        ),
        _arxiv(
            "melnyk2024aot",
            "Distributional Preference Alignment of LLMs via Optimal Transport",
            "Melnyk, Igor and others",
            "2024",
            "2406.05882",
        ),
        _arxiv(
            "doosterlinck2024apo",
            "Anchored Preference Optimization and Contrastive Revisions: Addressing "
            "Underspecification in Alignment",
            "D'Oosterlinck, Karel and others",
            "2024",
            "2408.06266",
        ),
        _arxiv(
            "lu2024discopop",
            "Discovering Preference Optimization Algorithms with and for Large Language Models",
            "Lu, Chris and others",
            "2024",
            "2406.08414",
        ),
        _arxiv(
            "pang2024irpo",
            "Iterative Reasoning Preference Optimization",
            "Pang, Richard Yuanzhe and others",
            "2024",
            "2404.19733",
        ),
        _arxiv(
            "lambert2024tulu3",
            "Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
            "Lambert, Nathan and others",
            "2024",
            "2411.15124",
        ),
        _arxiv(
            "wang2024fdpo",
            "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse "
            "Divergence Constraints",
            "Wang, Chaoqi and others",
            "2023",
            "2309.16240",
        ),
        _entry(
            "efron1982",
            "book",
            title="The Jackknife, the Bootstrap and Other Resampling Plans",
            author="Efron, Bradley",
            publisher="SIAM",
            year="1982",
        ),
        _entry(
            "wilson1927",
            "article",
            title="Probable Inference, the Law of Succession, and Statistical Inference",
            author="Wilson, Edwin B.",
            journal="Journal of the American Statistical Association",
            volume="22",
            year="1927",
        ),
        _entry(
            "dunnett1955",
            "article",
            title="A Multiple Comparison Procedure for Comparing Several Treatments with a Control",
            author="Dunnett, Charles W.",
            journal="Journal of the American Statistical Association",
            volume="50",
            year="1955",
        ),
        _entry(
            "hothorn2008",
            "article",
            title="Simultaneous Inference in General Parametric Models",
            author="Hothorn, Torsten and Bretz, Frank and Westfall, Peter",
            journal="Biometrical Journal",
            volume="50",
            year="2008",
        ),
        _entry(
            "banerjee1961",
            "article",
            title="On Confidence Interval for Two-Means Problem Based on Separate Estimates of "
            "Variances and Tabulated Values of t-Table",
            author="Banerjee, Saibal",
            journal="Sankhya A",
            volume="23",
            year="1961",
        ),
        _entry(
            "welch1947",
            "article",
            title="The Generalization of `Student's' Problem when Several Different Population "
            "Variances are Involved",
            author="Welch, Bernard L.",
            journal="Biometrika",
            volume="34",
            year="1947",
        ),
    )
)
"""Key -> entry."""
