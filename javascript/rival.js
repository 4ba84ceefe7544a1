// What the panel needs of the browser: presets in its own storage, the tab that is open, the progress of a check.

const rival = (() => {
    const STORED = "rival-presets";

    const read = () => JSON.parse(localStorage.getItem(STORED) ?? "{}");
    const write = (presets) => localStorage.setItem(STORED, JSON.stringify(presets));
    const choices = (value) => ({
        __type__: "update",
        value,
        choices: Object.keys(read()).sort(),
    });

    // gradio appends the outputs' present values to the inputs: `count` tells them apart
    const listPresets = (name) => [choices(name)];

    const savePreset = (name, ...values) => {
        const title = (name ?? "").trim();
        if (title) write({...read(), [title]: values.slice(0, -1)});
        return [choices(title)];
    };

    const deletePreset = (name) => {
        const {[name]: _, ...others} = read();
        write(others);
        return [choices("")];
    };

    const applyPreset = (name, ...values) => {
        const present = values.slice(0, values.length / 2);
        return read()[name] ?? present;
    };

    // the first argument is a place for the number of the open image tab
    const withTab = (tab, ...others) => [
        gradioApp().getElementById("mode_img2img") ? get_tab_index("mode_img2img") : tab,
        ...others,
    ];

    const show = (tab) => () => {
        const button = [...gradioApp().querySelectorAll("#tabs > .tab-nav > button")]
            .find(({textContent}) => textContent.trim() === tab);
        button?.click();
        gradioApp().getElementById(`${tab}_rival_enabled`)?.scrollIntoView({block: "start", behavior: "smooth"});
        return [];
    };

    return {
        ...{listPresets, savePreset, deletePreset, applyPreset, withTab},
        ...{showTxt2img: show("txt2img"), showImg2img: show("img2img")},
    };
})();
