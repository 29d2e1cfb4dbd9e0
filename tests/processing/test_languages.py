"""Codes and names of languages in datasets."""

import subprocess
import sys

import pytest
from tiny_models import compose

from llm_asr.processing.languages import LANGUAGE_CODE_TO_NAME, find_language


# The configurations of google/fleurs.
FLEURS = [
    "af_za",
    "am_et",
    "ar_eg",
    "as_in",
    "ast_es",
    "az_az",
    "be_by",
    "bg_bg",
    "bn_in",
    "bs_ba",
    "ca_es",
    "ceb_ph",
    "ckb_iq",
    "cmn_hans_cn",
    "cs_cz",
    "cy_gb",
    "da_dk",
    "de_de",
    "el_gr",
    "en_us",
    "es_419",
    "et_ee",
    "fa_ir",
    "ff_sn",
    "fi_fi",
    "fil_ph",
    "fr_fr",
    "ga_ie",
    "gl_es",
    "gu_in",
    "ha_ng",
    "he_il",
    "hi_in",
    "hr_hr",
    "hu_hu",
    "hy_am",
    "id_id",
    "ig_ng",
    "is_is",
    "it_it",
    "ja_jp",
    "jv_id",
    "ka_ge",
    "kam_ke",
    "kea_cv",
    "kk_kz",
    "km_kh",
    "kn_in",
    "ko_kr",
    "ky_kg",
    "lb_lu",
    "lg_ug",
    "ln_cd",
    "lo_la",
    "lt_lt",
    "luo_ke",
    "lv_lv",
    "mi_nz",
    "mk_mk",
    "ml_in",
    "mn_mn",
    "mr_in",
    "ms_my",
    "mt_mt",
    "my_mm",
    "nb_no",
    "ne_np",
    "nl_nl",
    "nso_za",
    "ny_mw",
    "oc_fr",
    "om_et",
    "or_in",
    "pa_in",
    "pl_pl",
    "ps_af",
    "pt_br",
    "ro_ro",
    "ru_ru",
    "sd_in",
    "sk_sk",
    "sl_si",
    "sn_zw",
    "so_so",
    "sr_rs",
    "sv_se",
    "sw_ke",
    "ta_in",
    "te_in",
    "tg_tj",
    "th_th",
    "tr_tr",
    "uk_ua",
    "umb_ao",
    "ur_pk",
    "uz_uz",
    "vi_vn",
    "wo_sn",
    "xh_za",
    "yo_ng",
    "yue_hant_hk",
    "zu_za",
]


@pytest.fixture(scope="module")
def processor(parts):
    return compose(parts, "conv")[1]


def test_all_languages_of_fleurs_are_known():
    assert len(FLEURS) == 102
    names = [find_language(code, LANGUAGE_CODE_TO_NAME) for code in FLEURS]
    assert None not in names
    assert len(set(names)) == 102


@pytest.mark.parametrize(
    ("language", "name"),
    [
        ("jv_id", "Javanese"),
        ("nb_no", "Norwegian"),
        ("cmn_hans_cn", "Chinese"),
        ("yue_hant_hk", "Cantonese"),
        ("fil_ph", "Tagalog"),
        ("eng", "English"),
        ("deu", "German"),
        ("ger", "German"),
        ("zho", "Chinese"),
        ("chi", "Chinese"),
        ("iw", "Hebrew"),
        ("in", "Indonesian"),
        ("zh-TW", "Chinese"),
        ("pt-BR", "Portuguese"),
        ("EN", "English"),
        (" Spanish ", "Spanish"),
        ("Mandarin", "Chinese"),
        ("Castilian", "Spanish"),
        (None, None),
        ("", None),
        ("auto", None),
        ("Auto", None),
    ],
)
def test_codes_of_all_standards_and_names_are_known(processor, language, name):
    assert processor.language_name(language) == name


@pytest.mark.parametrize("language", ["gsw", "arz", "nds", "nan", "xx", "zzz", "e", "es es", "klingon", "_", "日本"])
def test_a_language_is_not_confused_with_a_related_one(processor, language):
    with pytest.raises(
        ValueError, match=r"is not among the 119 languages of this processor; .*pass a code such as 'es'"
    ):
        processor.language_name(language)


def test_the_error_suggests_the_nearest_language_and_names_the_recording(processor, recordings):
    with pytest.raises(ValueError, match=r"^`language` 'Spannish' .* did you mean Spanish \(es\)") as error:
        processor.apply_transcription_request(recordings[:1], language="Spannish")
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match="^Recording 1: `language` 'xx' is not among"):
        processor.apply_transcription_request(recordings[:2], language=["es", "xx"])
    with pytest.raises(TypeError, match="^Recording 1: `language` must be a string"):
        processor.apply_transcription_request(recordings[:2], language=["es", 3])


def test_languages_of_a_processor_are_found_by_all_of_their_codes(parts):
    processor = compose(parts, "conv")[1]
    processor.languages = {"nds": "Low German", "arz": "Egyptian Arabic"}
    assert processor.language_name("low german") == "Low German"
    assert processor.language_name("arz-EG") == "Egyptian Arabic"
    with pytest.raises(ValueError, match="'de' is not among the 2 languages"):
        processor.language_name("de")


def test_without_the_library_the_codes_of_the_processor_are_known():
    """A checkpoint's code may run on a machine that has only Transformers."""
    code = (
        "import sys; sys.modules['langcodes'] = None; from llm_asr.processing.languages import *; "
        "print(*(find_language(code, LANGUAGE_CODE_TO_NAME) for code in ('es', 'es_419', 'Spanish', 'mandarin', 'xx')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["Spanish", "Spanish", "Spanish", "Chinese", "None"]
