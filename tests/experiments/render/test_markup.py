from experiments.render.markup import Markup, element


def test_text_and_attributes_are_escaped_and_markup_is_not():
    made = element("p", "<b>", [Markup("<i></i>"), None], title='"&', class_="a", aria_label="", role=None)
    assert made == '<p title="&quot;&amp;" class="a">&lt;b&gt;<i></i></p>'
    assert element("div", element("img", alt="x")) == '<div><img alt="x"></div>'
