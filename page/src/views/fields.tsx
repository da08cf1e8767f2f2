import type { ComponentChildren } from 'preact'
import { generate } from '../state/actions'
import { change, draft, faults } from '../state/draft'
import { type Draft } from '../state/recipe'

/** A labelled field of the draft, with what is wrong with it. */
type Name = { [K in keyof Draft]: Draft[K] extends string ? K : never }[keyof Draft]

export function Fault({ name }: { name: keyof typeof faults.value }) {
  const sentence = faults.value[name]
  return sentence ? (
    <span class="fault" id={`fault-${name}`}>
      {sentence}
    </span>
  ) : null
}

export function described(name: keyof typeof faults.value) {
  return faults.value[name] ? { 'aria-invalid': 'true' as const, 'aria-describedby': `fault-${name}` } : {}
}

/** Enter in a field draws, as it would in any form. */
export function onEnter(event: KeyboardEvent): void {
  if (event.key !== 'Enter' || event.isComposing) return
  event.preventDefault()
  void generate()
}

export function NumberField(props: {
  name: Name
  label: string
  placeholder?: string | undefined
  min?: number
  max?: number | undefined
  step?: number
  children?: ComponentChildren
}) {
  const { name, label, placeholder, min, max, step, children } = props
  return (
    <div class="field">
      <label for={`field-${name}`}>{label}</label>
      <span class="row">
        <input
          id={`field-${name}`}
          type="number"
          inputMode="decimal"
          value={draft.value[name]}
          placeholder={placeholder}
          min={min}
          max={max}
          step={step ?? 'any'}
          onInput={(event) => change({ [name]: event.currentTarget.value })}
          onKeyDown={onEnter}
          {...described(name)}
        />
        {children}
      </span>
      <Fault name={name} />
    </div>
  )
}

export function Choice(props: { name: Name; label: string; usual: string; options: { id: string; label: string; disabled?: boolean }[] }) {
  const { name, label, usual, options } = props
  const value = draft.value[name]
  const known = options.some((one) => one.id === value) || value === ''
  return (
    <div class="field">
      <label for={`field-${name}`}>{label}</label>
      <select
        id={`field-${name}`}
        value={value}
        onChange={(event) => change({ [name]: event.currentTarget.value })}
        {...described(name)}
      >
        <option value="">{usual}</option>
        {options.map((one) => (
          <option key={one.id} value={one.id} disabled={one.disabled}>
            {one.label}
          </option>
        ))}
        {known ? null : <option value={value}>{value}</option>}
      </select>
      <Fault name={name} />
    </div>
  )
}

export function Range(props: { name: Name; label: string; hint?: string; min: number; max: number; step: number }) {
  const { name, label, hint, min, max, step } = props
  return (
    <div class="field">
      <label for={`field-${name}`}>
        {label}: <output>{draft.value[name]}</output>
      </label>
      <input
        id={`field-${name}`}
        type="range"
        value={draft.value[name]}
        min={min}
        max={max}
        step={step}
        onInput={(event) => change({ [name]: event.currentTarget.value })}
        {...described(name)}
      />
      {hint ? <small>{hint}</small> : null}
      <Fault name={name} />
    </div>
  )
}
