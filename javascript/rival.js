// What the panel needs of the browser: presets in its own storage, the tab that is open, the progress of a check.

// `var`: where the extension is installed twice, the page has this file twice, and the first one stays
var rival = globalThis.rival ?? (() => {
    const STORED = "rival-presets";

    const read = () => JSON.parse(localStorage.getItem(STORED) ?? "{}");
    const write = (presets) => localStorage.setItem(STORED, JSON.stringify(presets));
    // gradio 4 has a name and a value for each
    const choice = (name) => (gradio_config.version.startsWith("3.") ? name : [name, name]);
    const choices = (value) => ({
        __type__: "update",
        value,
        choices: Object.keys(read()).sort().map(choice),
    });

    // gradio hands over the inputs' values, then the outputs' present ones
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
        const [presets, present] = [read(), values.slice(0, values.length / 2)];
        // a name like "constructor" is no preset, though every object has it
        return Object.hasOwn(presets, name) ? presets[name] : present;
    };

    // what was last clicked or written into
    let touched = null;
    for (const kind of ["click", "input"]) {
        document.addEventListener(kind, ({target}) => { touched = target; }, true);
    }
    const isByHand = (id) => gradioApp().getElementById(id).contains(touched);

    const openTab = (id) => (gradioApp().getElementById(id) ? get_tab_index(id) : 0);
    const isImg2img = () => gradioApp().getElementById("tab_img2img")?.style.display !== "none";

    // the first two arguments are places for what only the page knows
    const withTabs = (imageTab, sizeTab, ...others) =>
        isImg2img() ? [openTab("mode_img2img"), openTab("img2img_tabs_resize"), ...others] : [0, 0, ...others];

    // Forge's canvas hands over pixels alone, but shows the file itself, which says what it was made with
    const files = (part) => [...gradioApp().querySelectorAll(`${part} .forge-image`)]
        .filter((picture) => picture.getAttribute("src"));
    const isSeen = ({offsetParent}) => offsetParent !== null;
    const withFile = (_, ...others) => {
        const exemplar = files(`#${isImg2img() ? "img2img" : "txt2img"}_rival_exemplar`);
        const [shown] = [...exemplar, ...files("#mode_img2img").filter(isSeen)];
        return [shown?.src ?? "", ...withTabs(...others)];
    };

    // a task of the host like any other: its progress bar, preview, Interrupt and Skip
    const startCheck = (task, ...others) => {
        const tab = isImg2img() ? "img2img" : "txt2img";
        const [id, gallery] = [randomId(), gradioApp().getElementById(`${tab}_gallery`)];
        showSubmitButtons(tab, false);
        requestProgress(id, gradioApp().getElementById(`${tab}_gallery_container`), gallery, () =>
            showSubmitButtons(tab, true));
        return [id, ...withTabs(...others)];
    };

    // just uploaded, a picture that can be painted on has no strokes yet, which the server cannot read
    const readable = (picture) => [picture?.image ? {...picture, mask: picture.mask ?? picture.image} : null];

    const show = (tab) => () => {
        const button = [...gradioApp().querySelectorAll("#tabs > .tab-nav > button")]
            .find(({textContent}) => textContent.trim() === tab);
        button?.click();
        const exemplars = gradioApp().getElementById(`${tab}_rival_exemplars`);
        const label = exemplars?.querySelector(".label-wrap");
        if (label && !label.classList.contains("open")) label.click();
        exemplars?.scrollIntoView({block: "center", behavior: "smooth"});
        return [];
    };

    // the host's title has the percentage alone, its bar what is being done as well
    const nameInTitle = () => {
        const bar = gradioApp().querySelector(".progressDiv > .progress")?.textContent ?? "";
        const [doing] = bar.match(/^(Inverting|Reconstructing) \d+\/\d+/) ?? [];
        if (doing && !document.title.includes(doing)) document.title = document.title.replace("[", `[${doing} `);
    };
    onUiLoaded(() => new MutationObserver(nameInTitle).observe(document.querySelector("title"), {childList: true}));

    return {
        ...{listPresets, savePreset, deletePreset, applyPreset, isByHand, withTabs, withFile, startCheck, readable},
        ...{showTxt2img: show("txt2img"), showImg2img: show("img2img")},
    };
})();
